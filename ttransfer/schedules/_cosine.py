"""Cosine annealing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ttransfer.core._types import Schedule
from ttransfer.schedules._numbers import progress, reals

__all__ = ["cosine"]


def cosine(peak: float, steps: float, *, floor: float = 0.0) -> Schedule:
    r"""Half a cosine from the peak down to the floor, where it stays.

    .. math:: f + (a - f)\,\tfrac12\,(1 + \cos \pi p), \qquad p = \min(t / T, 1)

    Args:
        peak: the value a at step 0.
        steps: the length T of the descent, in steps.
        floor: the value f from step `steps` on.

    Returns:
        A schedule with the numbers "peak", "steps" and "floor".

    Raises:
        TransferError: if one of them is not a number.

    Example:
        >>> import ttransfer as tt
        >>> lr = tt.schedules.cosine(0.1, 100)
        >>> [round(lr(t).item(), 4) for t in (0, 25, 50, 100, 200)]
        [0.1, 0.0854, 0.05, 0.0, 0.0]

    References:
        Loshchilov, Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017.
    """

    def apply(step: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        shape = 0.5 * (1.0 + torch.cos(math.pi * progress(step, numbers["steps"])))
        return numbers["floor"] + (numbers["peak"] - numbers["floor"]) * shape

    return Schedule(apply, reals("cosine", peak=peak, steps=steps, floor=floor))
