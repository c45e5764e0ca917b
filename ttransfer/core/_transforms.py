"""What was done to a step after it was built: ensembles, sweeps, sharding, compilation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["SHARDS", "TOTALS", "Outside", "Transform", "outside_of"]


class Outside(NamedTuple):
    """What a sharded step needs done outside of its graph, where processes may talk to each other.

    Attributes:
        prepare: (state, batch, check) -> the batch that `check` returns, with what is known of all ranks' rows.
            `check` is called in it, so that what it raises on one rank is known to all.
        whole: state -> the state as a single process would have it: what a checkpoint holds.
        part: such a state -> this rank's.
        agree: (whether something is so here) -> whether it is so on any rank.
        first: whether this process is the one that writes.
        uncompiled: () -> why the step cannot be compiled, "" if it can.
        gathered: (phase, "" in a plain step; its state; its batch) -> term -> why it sees the rows of all ranks.
    """

    prepare: Callable[[Any, Any, Callable[[], Any]], Any]
    whole: Callable[[Any], Any]
    part: Callable[[Any], Any]
    agree: Callable[[bool], bool]
    first: bool
    uncompiled: Callable[[], str]
    gathered: Callable[[str, Any, Any], Mapping[str, str]]


class Transform(NamedTuple):
    """What was done to a step after it was built, so that it can be done again to a changed one.

    Attributes:
        name: "ensemble", "sweep", "shard" or "compile".
        options: what it was told.
        apply: step -> step, the same again.
        outer: whether it must stay outside of a vmap: ensembles and sweeps slip beneath it.
        outside: what is to be done at each call, outside of any graph.
    """

    name: str
    options: Mapping[str, Any]
    apply: Callable[[Any], Any]
    outer: bool = False
    outside: Outside | None = None


SHARDS, TOTALS = "#shards", "#totals"
"""Where a prepared batch of a sharded step keeps what is known of all ranks' rows; no domain can be called so.

Under the second: domain -> a tensor without elements, as long as the domain has rows on all ranks together. A number of
rows is a shape, and only shapes of tensors may be left open when a graph is made.
"""


def outside_of(transforms: Sequence[Transform]) -> Outside | None:
    """What the transforms of a step need done outside of its graph, if anything."""
    return next((transform.outside for transform in transforms if transform.outside is not None), None)
