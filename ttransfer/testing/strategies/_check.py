"""What the strategies refuse, before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ttransfer._errors import TransferError, nearest

__all__ = ["bounds_of", "finite", "known", "positive", "real_dtypes", "shape_of", "whole"]


def known(what: str, family: Any, families: Sequence[str]) -> str:
    """Return a family that there is."""
    if family not in families:
        raise TransferError(f"{what}: no family {family!r}{nearest(str(family), families)}")
    return family


def shape_of(what: str, shape: Any, *, least: int = 0, wanted: str = "whole numbers from 0") -> tuple[int, ...]:
    """Return a shape as a tuple.

    Args:
        what: was called.
        shape: what it got.
        least: how many dimensions it must have.
        wanted: what to say of the shape that is wanted.
    """
    numbers = tuple(shape) if isinstance(shape, (tuple, list)) else None
    if numbers is None or len(numbers) < least or not all(_whole(size) and size >= 0 for size in numbers):
        raise TransferError(f"{what}: shape must be {wanted}, got {shape!r}")
    return numbers


def bounds_of(what: str, name: str, pair: Any, *, least: int) -> tuple[int, int]:
    """Return (fewest, most), two whole numbers of which none is below `least`."""
    numbers = tuple(pair) if isinstance(pair, (tuple, list)) else ()
    if len(numbers) != 2 or not all(map(_whole, numbers)) or not least <= numbers[0] <= numbers[1]:
        raise TransferError(f"{what}: {name} must be the fewest and the most, from {least} on, got {pair!r}")
    return numbers[0], numbers[1]


def whole(what: str, name: str, number: Any, *, least: int) -> int:
    """Return a whole number that is not below `least`."""
    if not _whole(number) or number < least:
        raise TransferError(f"{what}: {name} must be a whole number from {least} on, got {number!r}")
    return number


def finite(what: str, name: str, number: Any) -> float:
    """Return a finite number."""
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise TransferError(f"{what}: {name} must be a finite number, got {number!r}")
    return float(number)


def positive(what: str, name: str, number: Any) -> float:
    """Return a finite number above 0."""
    if finite(what, name, number) <= 0:
        raise TransferError(f"{what}: {name} must be above 0, got {number!r}")
    return float(number)


def real_dtypes(what: str, dtypes: Any) -> tuple[torch.dtype, ...]:
    """Return dtypes of real numbers, one at least."""
    found = tuple(dtypes) if isinstance(dtypes, (tuple, list)) else ()
    if not found or not all(isinstance(dtype, torch.dtype) and not dtype.is_complex for dtype in found):
        raise TransferError(f"{what}: dtypes must be some of torch's for real numbers, got {dtypes!r}")
    return found


def _whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
