"""The schedule that does not change."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ttransfer.core._types import Schedule
from ttransfer.schedules._numbers import reals

__all__ = ["constant"]


def constant(value: float) -> Schedule:
    """The same number at every step.

    A plain number does the same wherever a schedule is asked for; this one has `apply`.

    Args:
        value: the number.

    Returns:
        A schedule with the number "value".

    Raises:
        TransferError: if `value` is not a number.

    Example:
        >>> import ttransfer as tt
        >>> tt.schedules.constant(0.1)(1000).item()
        0.1
    """

    def apply(step: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        return numbers["value"].clone()

    return Schedule(apply, reals("constant", value=value))
