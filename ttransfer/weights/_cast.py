"""Tensors in another dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._named import named
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["cast"]


def cast(dtype: torch.dtype, patterns: str | Sequence[str] | None = None) -> WeightMap:
    """Cast floating-point tensors; counters and masks stay what they are.

    Args:
        dtype: a floating-point dtype.
        patterns: names, or regular expressions for whole names; None is all.

    Returns:
        A `WeightMap`; tensors that no pattern matches are passed on.

    Raises:
        TransferError: for another dtype; at use for a pattern that matches no source, and a name or an expression
            that names only tensors without a floating point.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"fc.weight": torch.ones(2), "bn.num_batches_tracked": torch.tensor(7)}
        >>> load = tt.weights.cast(torch.bfloat16)
        >>> [x.dtype for x in load.apply(src, {}).values()]
        [torch.bfloat16, torch.int64]
        >>> load.plan(src, {}).made["fc.weight"].how
        'float32 -> bfloat16'
    """
    given: Any = dtype
    if not isinstance(given, torch.dtype) or not dtype.is_floating_point:
        raise TransferError(f"cast: wanted a floating-point dtype such as torch.float16, got {dtype!r}")

    def routes(src: Tensors, like: Tensors) -> Routes:
        made = {name: taken(name) for name in src}
        for pattern in [None] if patterns is None else [patterns] if isinstance(patterns, str) else patterns:
            hit = list(src) if pattern is None else named("cast", pattern, src)
            real = [name for name in hit if src[name].is_floating_point()]
            if pattern is not None and not real:
                raise TransferError(f"cast: {pattern!r} names only {hit[0]!r} {shown(src[hit[0]])} and its like")
            for name in real:
                if src[name].dtype != dtype:
                    how = f"{_short(src[name].dtype)} -> {_short(dtype)}"
                    made[name] = Route((name,), lambda x: x.to(dtype), how)
        return Routes(made)

    return routed(routes)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
