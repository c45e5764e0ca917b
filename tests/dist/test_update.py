"""The sharded update: pure, guarded, and in shares."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

import ttransfer as tt
from tests.support.compare import copied, worst
from tests.support.nets import mlp, vectors
from tests.support.sharded import cut, part
from tests.support.steps import small_step
from ttransfer.core import _tree as tree
from ttransfer.dist._ranks import Ranks
from ttransfer.testing._threads import run_ranks

TERMS = {
    "task": tt.term(F.cross_entropy, "student(source)", "source.y", ignore_index=0),
    "mmd": tt.term(tt.align.mmd, "student(source)", "student(target)"),
}


def test_inputs_are_left_alone_and_the_same_gives_the_same() -> None:
    step, batch = small_step(TERMS, {"student": tt.functional(mlp(1, p=0.5))}), vectors(0)
    first = step.init(batch)

    def work(ranks: Ranks) -> bool:
        sharded, mine = tt.shard(step, ranks), part(batch, ranks.rank, cut(batch, 2))
        state = copied(first)
        versions = [x._version for x in (*tree.leaves(state), *tree.leaves(mine))]
        one, two = sharded(state, mine), sharded(state, mine)
        same = versions == [x._version for x in (*tree.leaves(state), *tree.leaves(mine))]
        return same and worst(one, two) == 0 and worst(state, first) == 0

    assert run_ranks(2, work) == [True, True]


def test_a_number_that_is_none_on_one_rank_stops_the_update_on_all() -> None:
    step, batch = small_step(TERMS, {"student": tt.functional(mlp(1))}), vectors(0)
    batch["target"]["x"][-1] = float("nan")
    first = step.init(batch)

    def work(ranks: Ranks) -> Any:
        return tt.shard(step, ranks)(copied(first), part(batch, ranks.rank, cut(batch, 2)))

    for state, logs in run_ranks(2, work):
        assert not logs["finite"]
        assert worst(state, first) == 0


def test_a_rank_without_a_valid_label_has_no_part_of_the_mean() -> None:
    step, batch = small_step({"task": TERMS["task"]}, {"student": tt.functional(mlp(1))}), vectors(0)
    batch["source"]["y"][:3] = 0
    first = step.init(batch)
    wanted = step(first, batch)

    def work(ranks: Ranks) -> Any:
        return tt.shard(step, ranks)(copied(first), part(batch, ranks.rank, cut(batch, 2)))

    for found in run_ranks(2, work):
        assert worst(found, wanted) < 1e-12
