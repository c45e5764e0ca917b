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


def one_logit(called: str, **given: Tensor) -> None:
    """Refuse what is not one floating logit per item: (n,), (n, 1), tokens (n, tokens, 1) or a map (n, 1, ...).

    Raises:
        TransferError: naming every tensor given, with its shape and dtype.
    """
    for x in given.values():
        if not x.is_floating_point() or x.ndim == 0 or not (x.ndim == 1 or x.shape[1] == 1 or x.shape[-1] == 1):
            wanted = "one logit per item, (n,), (n, 1), (n, tokens, 1) or (n, 1, h, w)"
            raise TransferError(f"{called}: wanted {wanted}, got {items(**given)}")


def want_logits(called: str, **given: Tensor) -> None:
    """Refuse what is not floating scores (n, classes, ...) with at least two classes, all of one shape but for rows.

    Raises:
        TransferError: naming every tensor given, with its shape and dtype.
    """
    first = next(iter(given.values()))
    for x in given.values():
        if x.ndim < 2 or not x.is_floating_point() or x.shape[1] < 2:
            raise TransferError(f"{called}: wanted logits (n, classes, ...), got {items(**given)}")
        if x.shape[1] != first.shape[1]:
            raise TransferError(f"{called}: wanted logits of the same classes, got {items(**given)}")


def row_labels(called: str, features: Tensor, labels: Tensor) -> None:
    """Refuse what is not one whole number for each row of features.

    Raises:
        TransferError: naming both, with their shapes and dtypes.
    """
    if labels.is_floating_point() or labels.dtype.is_complex or labels.shape != features.shape[:1]:
        got = items(features=features, labels=labels)
        raise TransferError(f"{called}: wanted labels (n,) of whole numbers, one for each row, got {got}")


def rows_of(called: str, features: Tensor) -> Tensor:
    """Return features (n, d) in float32 at least.

    Raises:
        TransferError: for maps, for integers, for no rows.
    """
    if features.ndim != 2 or not features.is_floating_point() or features.shape[0] < 1:
        cure = "; pool the map first, as with x.mean((-2, -1))" if features.ndim > 2 else ""
        raise TransferError(f"{called}: wanted floating features (n, d), got {shown(features)}{cure}")
    return features.to(torch.promote_types(features.dtype, torch.float32))


def same_rows(called: str, **given: Tensor) -> None:
    """Refuse tensors of different numbers of rows.

    Raises:
        TransferError: naming every tensor given, with its shape and dtype.
    """
    first = next(iter(given.values()))
    if any(x.ndim == 0 or x.shape[0] != first.shape[0] for x in given.values()):
        raise TransferError(f"{called}: wanted the same rows, got {items(**given)}")


def items(**given: Tensor) -> str:
    """Write names, shapes and dtypes for a message."""
    return " and ".join(f"{name} {shown(x)}" for name, x in given.items())
