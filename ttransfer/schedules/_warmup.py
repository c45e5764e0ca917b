"""A linear start before another schedule."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ttransfer.core._hyper import evaluate
from ttransfer.core._hyper import numbers as entries
from ttransfer.core._types import Schedule
from ttransfer.schedules._numbers import progress, reals

__all__ = ["warmup"]


def warmup(after: Schedule | float, steps: float, *, start: float = 0.0) -> Schedule:
    r"""Rise in a straight line to where a schedule begins, then follow it.

    .. math:: s + (a(0) - s)\, t / T \quad (t < T), \qquad a(t - T) \quad (t \ge T)

    Args:
        after: the schedule that begins at step `steps`, or the number that then stays.
        steps: the length T of the warm-up, in steps.
        start: the value s at step 0.

    Returns:
        A schedule with the numbers "steps", "start" and those of `after` under "after."
        ("after.peak"; "after" itself where it is a number).

    Raises:
        TransferError: if one of them is not a number.

    Example:
        >>> import ttransfer as tt
        >>> lr = tt.schedules.warmup(tt.schedules.linear(1.0, 0.0, 2), 4)
        >>> [lr(t).item() for t in range(7)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 0.5, 0.0]
        >>> sorted(lr.hyper)
        ['after.end', 'after.start', 'after.steps', 'start', 'steps']

    References:
        Goyal, Dollár, Girshick, Noordhuis, Wesolowski, Kyrola, Tulloch, Jia, He, Accurate, Large
        Minibatch SGD: Training ImageNet in 1 Hour, 2017.
    """
    if not isinstance(after, Schedule):
        after = reals("warmup", after=after)["after"]

    def apply(step: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        steps = numbers["steps"]
        # Before its start `after` is held at its own step 0, so that it is never asked for less.
        then = evaluate("after", after, numbers, (step - steps).clamp(min=0.0))
        rise = numbers["start"] + (then - numbers["start"]) * progress(step, steps)
        return torch.where(step < steps, rise, then)

    return Schedule(apply, reals("warmup", steps=steps, start=start) | entries("after", after))
