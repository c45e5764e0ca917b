"""A straight line between two numbers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ttransfer.core._types import Schedule
from ttransfer.schedules._numbers import progress, reals

__all__ = ["linear"]


def linear(start: float, end: float, steps: float) -> Schedule:
    r"""Go from one number to another in a straight line, then stay.

    .. math:: s + (e - s)\, p, \qquad p = \min(t / T, 1)

    Args:
        start: the value at step 0.
        end: the value from step `steps` on.
        steps: the length of the line, in steps.

    Returns:
        A schedule with the numbers "start", "end" and "steps".

    Raises:
        TransferError: if one of them is not a number.

    Example:
        >>> import ttransfer as tt
        >>> line = tt.schedules.linear(1.0, 0.0, 4)
        >>> [line(t).item() for t in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    def apply(step: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        return numbers["start"] + (numbers["end"] - numbers["start"]) * progress(step, numbers["steps"])

    return Schedule(apply, reals("linear", start=start, end=end, steps=steps))
