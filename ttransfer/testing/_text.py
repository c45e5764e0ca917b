"""Values, written so that a person can type them in."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["text"]

LIMIT = 64  # numbers that anybody reads


def text(x: Any) -> str:
    """Write a number, a small tensor as nested lists, or the shape of a larger one.

    Nine digits, of the number and not behind the point: a gradient of 1e-9 is not 0.

    Example:
        >>> import torch
        >>> text(torch.tensor([[1.0, 2e-9]], dtype=torch.float64)), text(0.1 + 0.2)
        ('[[1.0, 2e-09]]', '0.3')
    """
    if isinstance(x, float):
        return f"{x:.9g}"
    if not isinstance(x, Tensor):
        return repr(x) if len(repr(x)) < 200 else type(x).__name__
    if x.is_meta or x.numel() > LIMIT:
        return f"tensor of shape {tuple(x.shape)}, {str(x.dtype).removeprefix('torch.')}"
    return _nested(x.detach().tolist())


def _nested(x: Any) -> str:
    if isinstance(x, list):
        return f"[{', '.join(map(_nested, x))}]"
    return repr(float(f"{x:.9g}")) if isinstance(x, float) else repr(x)
