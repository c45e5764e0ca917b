"""Decay in equal steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._types import Schedule
from ttransfer.schedules._numbers import reals

__all__ = ["step"]


def step(initial: float, *, every: float, factor: float = 0.1) -> Schedule:
    r"""Multiply by a factor every so many steps.

    .. math:: a\, c^{\lfloor t / n \rfloor}

    For values that change at steps of your own choice, `join` plain numbers.

    Args:
        initial: the value a at step 0.
        every: the number n of steps between two drops.
        factor: what c each drop multiplies by.

    Returns:
        A schedule with the numbers "initial", "every" and "factor".

    Raises:
        TransferError: if one of them is not a number, or `every` is not above 0.

    Example:
        >>> import ttransfer as tt
        >>> lr = tt.schedules.step(8.0, every=2, factor=0.5)
        >>> [lr(t).item() for t in range(6)]
        [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
    """
    hyper = reals("step", initial=initial, every=every, factor=factor)
    if hyper["every"] <= 0:
        raise TransferError(f"schedules.step: every is {every}, wanted a number of steps above 0")

    def apply(step: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        return numbers["initial"] * numbers["factor"] ** torch.floor(step / numbers["every"])

    return Schedule(apply, hyper)
