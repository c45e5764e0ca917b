"""The ramp of domain-adversarial training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ttransfer.core._types import Schedule
from ttransfer.schedules._numbers import progress, reals

__all__ = ["ramp"]


def ramp(steps: float, *, high: float = 1.0, alpha: float = 10.0) -> Schedule:
    r"""Rise smoothly from 0, as the domain-adversarial weight does.

    .. math:: h \left(\frac{2}{1 + e^{-\alpha p}} - 1\right), \qquad p = \min(t / T, 1)

    It ends at ``high * tanh(alpha / 2)``, which for alpha = 10 is 0.99991 of `high`.

    Args:
        steps: the length T of the run, in steps.
        high: the height h that is approached.
        alpha: the steepness.

    Returns:
        A schedule with the numbers "steps", "high" and "alpha".

    Raises:
        TransferError: if one of them is not a number.

    Example:
        >>> import ttransfer as tt
        >>> weight = tt.schedules.ramp(1000)
        >>> [round(weight(t).item(), 4) for t in (0, 100, 500, 1000)]
        [0.0, 0.4621, 0.9866, 0.9999]

    References:
        Ganin, Lempitsky, Unsupervised Domain Adaptation by Backpropagation, 2015.
    """

    def apply(step: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        # 2 / (1 + exp(-x)) - 1 is tanh(x / 2), which does not overflow.
        return numbers["high"] * torch.tanh(0.5 * numbers["alpha"] * progress(step, numbers["steps"]))

    return Schedule(apply, reals("ramp", steps=steps, high=high, alpha=alpha))
