"""Shape checks that the losses share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ttransfer._errors import TransferError, shown

__all__ = ["want_alike", "want_floats", "want_labels", "want_logits", "want_maps", "want_rows", "want_variant"]


def want_logits(called: str, **given: Tensor) -> None:
    """Refuse what is not floating scores (n, classes, ...), all of one shape.

    Raises:
        TransferError: naming every tensor given, with its shape and dtype.
    """
    _tensors(called, given)
    _one_shape(called, given)
    for tensor in given.values():
        if tensor.ndim < 2:
            raise TransferError(f"{called}: wanted logits (n, classes, ...), got {_shown(given)}")
        if not tensor.is_floating_point():
            raise TransferError(f"{called}: wanted floating logits, not labels; got {_shown(given)}")


def want_labels(called: str, logits: Tensor, labels: Tensor) -> None:
    """Refuse labels that do not give one class for each row (and position) of logits (n, classes, ...)."""
    given = {"logits": logits, "labels": labels}
    _tensors(called, given)
    if labels.is_floating_point() or labels.dtype.is_complex:
        raise TransferError(f"{called}: wanted labels of whole numbers, got {_shown(given)}")
    if labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise TransferError(f"{called}: wanted one label for each row of the logits, got {_shown(given)}")


def want_floats(called: str, **given: Tensor) -> None:
    """Refuse integers."""
    _tensors(called, given)
    if not all(tensor.is_floating_point() for tensor in given.values()):
        raise TransferError(f"{called}: wanted floating tensors, got {_shown(given)}")


def want_alike(called: str, *, rank: int = 2, **given: Tensor) -> None:
    """Refuse what is not floating, of one shape, with at least so many axes."""
    want_floats(called, **given)
    _one_shape(called, given)
    for tensor in given.values():
        if tensor.ndim < rank:
            raise TransferError(f"{called}: wanted at least {rank} axes, rows first; got {_shown(given)}")


def want_rows(called: str, *, fewest: int = 1, **given: Tensor) -> None:
    """Refuse what is not floating features (n, ...), of any widths, of the same n, or of too few rows."""
    want_floats(called, **given)
    first = next(iter(given.values()))
    for tensor in given.values():
        if tensor.ndim < 2:
            raise TransferError(f"{called}: wanted features (n, d) or (n, ...), got {_shown(given)}")
        if tensor.shape[0] != first.shape[0]:
            raise TransferError(f"{called}: wanted features of the same rows, got {_shown(given)}")
        if tensor.shape[0] < fewest:
            raise TransferError(f"{called}: wanted at least {fewest} rows, got {_shown(given)}")


def want_maps(called: str, *, channels: bool = True, space: bool = True, **given: Tensor) -> None:
    """Refuse what is not floating feature maps (n, channels, height, width) of the same rows.

    Args:
        called: the function to name in an error.
        channels: whether they must have the same number of channels.
        space: whether they must have the same height and width.
        **given: the maps.
    """
    want_floats(called, **given)
    first = next(iter(given.values()))
    for tensor in given.values():
        if tensor.ndim != 4:
            raise TransferError(f"{called}: wanted feature maps (n, channels, height, width), got {_shown(given)}")
        if tensor.shape[0] != first.shape[0]:
            raise TransferError(f"{called}: wanted feature maps of the same rows, got {_shown(given)}")
        if channels and tensor.shape[1] != first.shape[1]:
            cure = "; change the student's with an adapter, such as a 1x1 convolution"
            raise TransferError(f"{called}: wanted feature maps of the same channels, got {_shown(given)}{cure}")
        if space and tensor.shape[2:] != first.shape[2:]:
            cure = "; pool the larger one first"
            raise TransferError(
                f"{called}: wanted feature maps of the same height and width, got {_shown(given)}{cure}"
            )


def want_variant(called: str, variant: str) -> None:
    """Refuse a variant that is neither the paper's formula nor that of its authors' code."""
    if variant not in ("paper", "code"):
        raise TransferError(f"{called}: wanted variant 'paper' or 'code', got {variant!r}")


def _tensors(called: str, given: dict[str, Any]) -> None:
    if not all(isinstance(value, Tensor) for value in given.values()):
        cure = "; torch.from_numpy and torch.tensor make them"
        raise TransferError(f"{called}: wanted tensors, got {_shown(given)}{cure}")


def _one_shape(called: str, given: dict[str, Tensor]) -> None:
    first = next(iter(given.values()))
    # Compared, not put into a set: hashing a dynamic shape fixes it.
    if any(tensor.shape != first.shape for tensor in given.values()):
        raise TransferError(f"{called}: wanted tensors of one shape, got {_shown(given)}")


def _shown(given: dict[str, Tensor]) -> str:
    return " and ".join(f"{name} {shown(x)}" for name, x in given.items())
