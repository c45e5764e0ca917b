"""Polynomial decay."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ttransfer.core._types import Schedule
from ttransfer.schedules._numbers import progress, reals

__all__ = ["polynomial"]


def polynomial(start: float, end: float, steps: float, *, power: float = 2.0) -> Schedule:
    r"""Go from one number to another along a power of what is left, then stay.

    .. math:: e + (s - e)\,(1 - p)^k, \qquad p = \min(t / T, 1)

    Args:
        start: the value at step 0.
        end: the value from step `steps` on.
        steps: the length of the decay, in steps.
        power: the exponent k; 1 is `linear`.

    Returns:
        A schedule with the numbers "start", "end", "steps" and "power".

    Raises:
        TransferError: if one of them is not a number.

    Example:
        >>> import ttransfer as tt
        >>> decay = tt.schedules.polynomial(1.0, 0.0, 4)
        >>> [decay(t).item() for t in range(6)]
        [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]

    References:
        Chen, Papandreou, Kokkinos, Murphy, Yuille, DeepLab: Semantic Image Segmentation with Deep
        Convolutional Nets, Atrous Convolution, and Fully Connected CRFs, 2018 (the "poly" policy).
    """

    def apply(step: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        left = 1.0 - progress(step, numbers["steps"])
        # A power below 1 has an infinite slope at 0, which forward derivatives would multiply by 0.
        shape = torch.where(left > 0, left ** numbers["power"], 0.0)
        return numbers["end"] + (numbers["start"] - numbers["end"]) * shape

    return Schedule(apply, reals("polynomial", start=start, end=end, steps=steps, power=power))
