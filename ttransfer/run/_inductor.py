"""What inductor is told, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["has_halves", "inductor_options", "narrow_vectors"]

_HALVES = (torch.bfloat16, torch.float16)


def has_halves(tensors: Iterable[Any]) -> bool:
    """Whether any tensor is in half precision."""
    return any(isinstance(x, Tensor) and x.dtype in _HALVES for x in tensors)


def inductor_options(device: torch.device, halves: bool) -> dict[str, Any]:
    """The options for a graph.

    Args:
        device: where it runs.
        halves: whether something in it is in half precision.
    """
    if device.type != "cpu":
        return {}
    # Channels-last convolutions: slower here (benchmarks/results.txt, "inductor's defaults").
    return {"layout_optimization": False, **(narrow_vectors() if halves else {})}


def narrow_vectors() -> dict[str, Any]:
    """Have generated code use vectors of 256 bits where it would use 512.

    Of a tensor in half precision that is read transposed, some kernels with vectors of 512 bits get every fourth
    column wrong, often NaN, on torch 2.8 and 2.15 with gcc 12: a tile of 32 x 32 is transposed wrongly where the
    kernel around it is large. A vision transformer's patches are read so.
    """
    return {"cpp.simdlen": 256} if torch.backends.cpu.get_cpu_capability() == "AVX512" else {}
