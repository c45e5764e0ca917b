"""The names of an optimizer's numbers: declaring them, and joining those of several."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._hyper import is_number, numbers
from ttransfer.core._types import Optimizer, Scalar

__all__ = ["declare", "merge", "pick"]


def declare(caller: str, **given: Scalar) -> dict[str, Scalar]:
    """Return what an optimizer declares as its numbers.

    Raises:
        TransferError: for what is neither a number nor a schedule.
    """
    for name, value in given.items():
        if not is_number(value):
            raise TransferError(f"optim.{caller}: {name} is {value!r}, wanted a number, a 0-d tensor or a schedule")
    return given


def merge(caller: str, cure: str, parts: Mapping[str, tuple[str, Optimizer]]) -> dict[str, Scalar]:
    """Join the numbers of several optimizers.

    Args:
        caller: the combinator, for the message.
        cure: what to do about a clash, for the message.
        parts: part -> (prefix of its numbers, the optimizer).

    Raises:
        TransferError: if two parts have a number of one name.
    """
    merged: dict[str, Scalar] = {}
    owner: dict[str, str] = {}
    for part, (prefix, optimizer) in parts.items():
        for name, value in optimizer.hyper.items():
            full = prefix + name
            # A schedule's entries can clash too: "lr.peak" with the "peak" of a part named "lr".
            entries = [full, *numbers(full, value)]
            for entry in entries:
                if entry in owner:
                    both = f"parts {owner[entry]!r} and {part!r} both have"
                    raise TransferError(f"optim.{caller}: {both} {entry!r}; {cure}")
            owner |= dict.fromkeys(entries, part)
            merged[full] = value
    return merged


def pick(optimizer: Optimizer, prefix: str, hyper: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return one part's numbers under its own names."""
    return {name: hyper[prefix + name] for name in optimizer.hyper}
