"""Shape checks that the domain distances share."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._errors import TransferError


def features(called: str, source: Tensor, target: Tensor, *, rows: int) -> tuple[Tensor, Tensor]:
    """Return both domains in float32 at least: squared distances cancel badly in half precision.

    Args:
        called: the function to name in an error.
        source: (n, d).
        target: (m, d).
        rows: how many rows each domain needs.

    Raises:
        TransferError: for maps, for widths that differ, for too few rows, for integers.
    """
    got = f"got source {shown(source)} and target {shown(target)}"
    for side in (source, target):
        if side.ndim > 2:
            cure = "pool the map first, as with x.mean((-2, -1))"
            raise TransferError(f"{called}: wanted features (n, d), {got}; {cure}")
        if side.ndim < 2:
            raise TransferError(f"{called}: wanted features (n, d), {got}")
        if not side.is_floating_point():
            raise TransferError(f"{called}: wanted floating features, {got}")
        if side.shape[0] < rows:
            raise TransferError(f"{called}: wanted at least {rows} rows in each domain, {got}")
    if source.shape[1] != target.shape[1]:
        raise TransferError(f"{called}: wanted features of one width d, {got}")
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    return source.to(dtype), target.to(dtype)


def shown(x: Tensor) -> str:
    """Write a shape and a dtype for people."""
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
