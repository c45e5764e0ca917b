"""What the schedules share: their own numbers, and how far along they are."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._types import Schedule

__all__ = ["progress", "reals"]


def reals(caller: str, **given: float) -> dict[str, float]:
    """Return a schedule's own numbers as floats.

    Raises:
        TransferError: for anything but a real number.
    """
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            cure = "; schedules nest in warmup and join alone" if isinstance(value, Schedule) else ""
            raise TransferError(f"schedules.{caller}: {name} is {value!r}, wanted a number{cure}")
    return {name: float(value) for name, value in given.items()}


def progress(step: Tensor, steps: Tensor) -> Tensor:
    """Return the part of `steps` that is done, in [0, 1].

    A number of steps swept to zero or below is done at once: `where` guards the divisor too, so
    that neither the value nor a gradient is NaN.
    """
    part = step.clamp(min=0.0) / torch.where(steps > 0, steps, 1.0)
    return torch.where(step >= steps, 1.0, part)
