"""Shape checks that the domain distances share."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown


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

    def refuse(wanted: str, cure: str = "") -> NoReturn:
        raise TransferError(f"{called}: wanted {wanted}, got source {shown(source)} and target {shown(target)}{cure}")

    for side in (source, target):
        if side.ndim > 2:
            refuse("features (n, d)", "; pool the map first, as with x.mean((-2, -1))")
        if side.ndim < 2:
            refuse("features (n, d)")
        if not side.is_floating_point():
            refuse("floating features")
        if side.shape[0] < rows:
            refuse(f"at least {rows} rows in each domain")
    if source.shape[1] != target.shape[1]:
        refuse("features of one width d")
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    return source.to(dtype), target.to(dtype)
