"""Steps on several ranks beside the step of one process, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ttransfer as tt
from tests.support.compare import copied, worst
from ttransfer.core._transforms import outside_of
from ttransfer.dist._ranks import Ranks
from ttransfer.testing._threads import run_ranks

Cuts = Mapping[str, Sequence[int]]


def part(batch: Any, rank: int, cuts: Cuts, axis: int = 0) -> Any:
    """A rank's rows of each domain."""
    return {
        domain: {
            field: x.narrow(axis, cuts[domain][rank], cuts[domain][rank + 1] - cuts[domain][rank])
            for field, x in fields.items()
        }
        for domain, fields in batch.items()
    }


def cut(batch: Any, size: int, axis: int = 0) -> dict[str, list[int]]:
    """Consecutive parts, as equal as can be."""
    rows = {domain: next(iter(fields.values())).shape[axis] for domain, fields in batch.items()}
    return {domain: [rank * n // size for rank in range(size + 1)] for domain, n in rows.items()}


def alone(step: tt.Step, batches: Sequence[Any]) -> list[tuple[tt.State, Any]]:
    """The run of one process."""
    state, found = step.init(batches[0]), []
    for batch in batches:
        state, logs = step(state, batch)
        found.append((state, logs))
    return found


def spread(
    step: tt.Step, batches: Sequence[Any], cuts: Sequence[Cuts], axis: int = 0, **options: Any
) -> list[list[tuple[tt.State, Any]]]:
    """The runs of the ranks, whole states."""
    size = len(next(iter(cuts[0].values()))) - 1
    first = step.init(batches[0])

    def work(ranks: Ranks) -> list[tuple[tt.State, Any]]:
        sharded = tt.shard(step, ranks, **options)
        outside = outside_of(sharded.spec.transforms)
        assert outside is not None
        state, found = outside.part(copied(first)), []
        for batch, where in zip(batches, cuts, strict=True):
            state, logs = sharded(state, part(batch, ranks.rank, where, axis))
            found.append((outside.whole(state), logs))
        return found

    return run_ranks(size, work)


def gap(
    step: tt.Step, batches: Sequence[Any], cuts: Sequence[Cuts] | None = None, axis: int = 0, **options: Any
) -> float:
    """How far the ranks' states and logs are from those of one process, at the worst of all steps."""
    cuts = cuts or [cut(batch, 2, axis) for batch in batches]
    wanted, runs = alone(step, batches), spread(step, batches, cuts, axis, **options)
    return max(worst(got, one) for run in runs for got, one in zip(run, wanted, strict=True))
