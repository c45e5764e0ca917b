"""Shape checks that the losses share."""

from __future__ import annotations

from torch import Tensor

from ttransfer._errors import TransferError, shown


def want_logits(called: str, **given: Tensor) -> None:
    """Refuse what is not floating scores (n, classes, ...), all of one shape.

    Raises:
        TransferError: naming every tensor given, with its shape and dtype.
    """
    first = next(iter(given.values()))
    # Compared, not put into a set: hashing a dynamic shape fixes it.
    if any(tensor.shape != first.shape for tensor in given.values()):
        raise TransferError(f"{called}: wanted tensors of one shape, got {_shown(given)}")
    for tensor in given.values():
        if tensor.ndim < 2:
            raise TransferError(f"{called}: wanted logits (n, classes, ...), got {_shown(given)}")
        if not tensor.is_floating_point():
            raise TransferError(f"{called}: wanted floating logits, not labels; got {_shown(given)}")


def _shown(given: dict[str, Tensor]) -> str:
    return " and ".join(f"{name} {shown(x)}" for name, x in given.items())
