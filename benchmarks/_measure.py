"""Clocks and scales: interleaved times, and whether all contestants compute the same."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from _cases import Case, batch_of
from _programs import HAND, IMPERATIVE, OURS, Named, Program, program
from torch import Tensor

STEPS = 3  # in float64; in float32 one, before rounding grows


class Times(NamedTuple):
    """Seconds of each round, by the wall's clock and by this process's own."""

    wall: list[float]
    cpu: list[float]

    def ms(self) -> float:
        return 1e3 * statistics.median(self.wall)

    def ratio(self, to: Times) -> float:
        return _ratio(self.wall, to.wall)

    def cpu_ratio(self, to: Times) -> float:
        return _ratio(self.cpu, to.cpu)


def _ratio(these: list[float], those: list[float]) -> float:
    # By round, for what else the machine does changes more slowly than that.
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def interleaved(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Times]:
    """Time calls in turn, in an order drawn anew each round, for so many seconds."""
    for call in calls.values():
        call()
    order, times = list(calls), {name: Times([], []) for name in calls}
    draw = random.Random(0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[order[0]].wall) < 5:
        draw.shuffle(order)
        for name in order:
            wall, cpu = time.perf_counter(), time.process_time()
            calls[name]()
            times[name].wall.append(time.perf_counter() - wall)
            times[name].cpu.append(time.process_time() - cpu)
    return times


def stepping(one: Program, batch: Any) -> Callable[[], None]:
    """A call that takes one step of a training of its own."""
    held = [one.start()]

    def call() -> None:
        held[0], _ = one.advance(held[0], batch)

    return call


def mathematics(case: Case) -> float:
    """Run all in float64 without a compiler; return the largest difference of anything from the imperative loop."""
    found = {
        name: _ran(program(case, name, compiled=False, dtype=torch.float64), case, torch.float64, STEPS)
        for name in (IMPERATIVE, HAND, OURS)
    }
    return max(
        (theirs[key] - mine[key]).abs().max().item()
        for name in (HAND, OURS)
        for theirs, mine in zip(found[name], found[IMPERATIVE], strict=True)
        for key in mine
    )


def arithmetic(case: Case, programs: Mapping[str, Program]) -> dict[str, float]:
    """Take one step in float32; return each one's distance from the imperative loop in moments and buffers.

    The distance is relative to the norm. The moments are then the gradients. Parameters would be no test, and
    nor would a second step: Adam makes full steps of gradients that are rounding noise.
    """
    vectors = {
        name: [_joined(part) for part in _ran(one, case, torch.float32, 1)[1:]] for name, one in programs.items()
    }
    return {
        name: max(((a - b).norm() / b.norm()).item() for a, b in zip(found, vectors[IMPERATIVE], strict=True))
        for name, found in vectors.items()
    }


def _ran(one: Program, case: Case, dtype: torch.dtype, steps: int) -> tuple[Named, Named, Named]:
    state = one.start()
    for seed in range(steps):
        state, _ = one.advance(state, batch_of(case, seed, dtype=dtype))
    return one.parts(state)


def _joined(parts: Named) -> Tensor:
    return torch.cat([parts[name].flatten().double() for name in sorted(parts)])
