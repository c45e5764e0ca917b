"""A step over two ranks is the step of one."""

from __future__ import annotations

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer._errors import TransferError
from ttransfer.core._types import Logs, State
from ttransfer.dist._ranks import Ranks
from ttransfer.dist._shard import shard
from ttransfer.testing._law import law
from ttransfer.testing._threads import run_ranks
from ttransfer.testing.laws._step_tools import StepSubject, copied, trying

__all__ = ["LAWS"]

_SIZE = 2
# After operations of ours have met in threads, torch 2.8 compiles nothing any more, without a word. 2.11 is fine.
_THREADED = torch.__version__ >= "2.11"  # torch compares versions by their numbers


def _splits(subject: StepSubject) -> bool:
    rows = [x.shape[subject.stacked] for fields in subject.batch.values() for x in fields.values()]
    # Micro-batches of other rows have other statistics.
    counts = _accumulates(subject) and bool(tree.leaves(subject.first().buffers))
    return min(rows) >= _SIZE and not counts and _THREADED


def _accumulates(subject: StepSubject) -> bool:
    return any(expression.accumulate > 1 for expression, _ in subject.parts.values())


def _part(x: Tensor, axis: int, rank: int) -> Tensor:
    """A rank's rows: more for the first, where that can be."""
    n = x.shape[axis]
    cut = max(1, min(n - 1, (2 * n + 2) // 3))
    return x.narrow(axis, 0, cut) if rank == 0 else x.narrow(axis, cut, n - cut)


@law(_splits)
def sharded(subject: StepSubject) -> None:
    """Two ranks, each with its part of the rows, make the step that one makes of all: `tt.shard`.

    Broken by: a mean over something else than `count` says, coupled=False on a loss that looks at other rows, a net
    that looks at other rows in another way than batch normalisation.
    """

    def work(ranks: Ranks) -> list[tuple[State, Logs]]:
        step = shard(subject.step, ranks)
        state, found = copied(subject.first()), []
        for batch in subject.batches():
            part = {d: {f: _part(x, subject.stacked, ranks.rank) for f, x in own.items()} for d, own in batch.items()}
            state, logs = step(state, part)
            found.append((state, logs))
        return found

    def both() -> list[list[tuple[State, Logs]]]:
        try:
            return run_ranks(_SIZE, work)
        except TransferError as error:
            if not str(error).startswith("shard: "):
                raise
            return []  # it says that it cannot, and why

    for rank, found in enumerate(trying("over two ranks, a step", both)):
        for t, (got, alone) in enumerate(zip(found, subject.eager(), strict=True)):
            subject.near(f"after step {t + 1}, on rank {rank} of {_SIZE} and alone", got, alone)


LAWS = (sharded,)
