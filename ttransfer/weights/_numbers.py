"""What is refused where a number belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import cast

from torch import Tensor

from ttransfer._errors import TransferError, shown

__all__ = ["python_number", "want_number", "want_numbers"]


def want_number(whose: str, keyword: str, value: object) -> None:
    """Refuse what is neither a number nor a tensor.

    Raises:
        TransferError: with what it is.
    """
    if not isinstance(value, (Tensor, int, float, Real)):
        got = repr(value) if isinstance(value, str) else shown(value)
        raise TransferError(f"{whose}: wanted a number or a tensor for {keyword!r}, got {got}")


def want_numbers(whose: str, keyword: str, value: object) -> None:
    """Refuse what are no numbers, for one that takes several too.

    Raises:
        TransferError: with what they are.
    """
    if isinstance(value, Mapping):
        for each in cast(Mapping[str, object], value).values():
            want_number(whose, keyword, each)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in cast(Sequence[object], value):
            want_number(whose, keyword, each)
    else:
        want_number(whose, keyword, value)


def python_number(whose: str, keyword: str, value: object, *, whole: bool = False) -> None:
    """Refuse a tensor for what is read as a Python number, and so cannot be learned or swept.

    Raises:
        TransferError: with what to do.
    """
    if isinstance(value, Tensor):
        raise TransferError(
            f"{whose}: {keyword!r} is read as a Python number, and cannot be learned or swept; give it when the map is "
            f"made: as_reparam(tt.weights.{whose}({keyword}=...), ...), or functools.partial(tt.weights.{whose}, "
            f"{keyword}=...) where another number is learned"
        )
    wanted = (int, Integral) if whole else (int, float, Real)
    if isinstance(value, bool) or not isinstance(value, wanted):
        got = repr(value) if isinstance(value, (str, float)) else shown(value)
        raise TransferError(f"{whose}: wanted {'an int' if whole else 'a number'} for {keyword!r}, got {got}")
