"""One schedule after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._hyper import evaluate
from ttransfer.core._hyper import numbers as entries
from ttransfer.core._types import Schedule
from ttransfer.schedules._numbers import reals

__all__ = ["join"]


def join(
    schedules: Mapping[str, Schedule | float] | Sequence[Schedule | float], boundaries: Sequence[float]
) -> Schedule:
    """Follow one schedule after another; each later one begins at its own step 0.

    Plain numbers make a staircase: ``join((0.1, 0.01, 0.001), (30, 60))``.

    Args:
        schedules: the schedules or numbers in order, by name or not.
        boundaries: the steps at which the second and the later ones begin, rising.

    Returns:
        A schedule with the numbers of each part under its name or place ("decay.peak", "1.peak"; "1"
        where it is a number) and "boundaries.0", "boundaries.1", ...

    Raises:
        TransferError: if the boundaries do not rise or are not one fewer than the schedules, if a
            part is not a schedule or a number, or if two numbers get one name.

    Example:
        >>> import ttransfer as tt
        >>> lr = tt.schedules.join({"rise": tt.schedules.linear(0.0, 1.0, 4), "stay": 1.0, "rest": 0.1}, (4, 6))
        >>> [lr(t).item() for t in range(8)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.1, 0.1]
        >>> sorted(lr.hyper)
        ['boundaries.0', 'boundaries.1', 'rest', 'rise.end', 'rise.start', 'rise.steps', 'stay']
    """
    named = schedules if isinstance(schedules, Mapping) else {str(i): part for i, part in enumerate(schedules)}
    parts = {k: part if isinstance(part, Schedule) else reals("join", **{k: part})[k] for k, part in named.items()}
    starts = reals("join", **{f"boundaries.{i}": boundary for i, boundary in enumerate(boundaries)})
    rising = list(starts.values())
    if len(starts) != len(parts) - 1 or rising != sorted(set(rising)):
        raise TransferError(
            f"schedules.join: got {len(parts)} schedules and the boundaries {tuple(boundaries)}; "
            f"wanted {max(len(parts) - 1, 0)} rising boundaries"
        )
    hyper = dict(starts)
    for name, part in parts.items():
        own = entries(name, part)
        if shared := hyper.keys() & own.keys():
            raise TransferError(f"schedules.join: two numbers are called {min(shared)!r}; name the parts otherwise")
        hyper |= own

    def apply(step: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        begins = [torch.zeros_like(step), *(numbers[name] for name in starts)]
        value = torch.zeros_like(step)
        for (name, part), begin, end in zip(parts.items(), begins, [*begins[1:], None], strict=True):
            local = step - begin
            if end is not None:  # a part is asked for its own steps only: one that grows could overflow later on
                local = torch.minimum(local, end - begin)
            value = torch.where(step >= begin, evaluate(name, part, numbers, local.clamp(min=0.0)), value)
        return value

    return Schedule(apply, hyper)
