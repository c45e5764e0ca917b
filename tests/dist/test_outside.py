"""What a sharded step does outside of its graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import conv, mlp, vectors
from tests.support.steps import refused, small_step
from ttransfer.core._transforms import outside_of
from ttransfer.dist._ranks import Ranks
from ttransfer.testing._threads import run_ranks

TASK = {"task": tt.term(F.cross_entropy, "student(source)", "source.y")}


@pytest.mark.parametrize("members", [0, 2])
def test_a_whole_state_in_parts_and_together_again(members: int) -> None:
    step, batch = small_step(TASK, {"student": tt.functional(mlp(1))}, tt.optim.adam(1e-2)), vectors(0)
    step = tt.ensemble(step, members) if members else step
    state, _ = step(step.init(batch), batch)

    def work(ranks: Ranks) -> Any:
        outside = outside_of(tt.shard(step, ranks, optimizer="sharded").spec.transforms)
        assert outside is not None
        return outside.first, outside.whole(outside.part(state)), outside.agree(ranks.rank == 1)

    found = run_ranks(3, work)
    assert [first for first, _, _ in found] == [True, False, False]
    assert all(worst(whole, state) == 0 and so for _, whole, so in found)


def test_members_that_normalise_by_all_rows_cannot_be_compiled() -> None:
    step = tt.ensemble(small_step(TASK, {"student": tt.functional(conv(1))}), 2)
    sharded = tt.shard(step, tt.dist.init())
    refused(lambda: tt.compile(sharded), "'bn'", "cannot trace that for an ensemble", "batchnorm='local'")
    assert tt.compile(tt.shard(step, tt.dist.init(), batchnorm="local"), backend="eager")
    frozen = tt.replace(step, buffers={"student": "eval"})
    assert tt.compile(tt.shard(frozen, tt.dist.init()), backend="eager")


def test_a_description_tells_which_terms_see_all_rows_and_why() -> None:
    terms = {
        **TASK,
        "mmd": tt.term(tt.align.mmd, "student(source)", "student(target)"),
        "mixed": tt.term(F.mse_loss, tt.read("student(source)") | (lambda x: x - x.mean(0)), "student(source)"),
    }
    nets = {"student": tt.functional(mlp(1))}
    game = tt.alternate(one=small_step(terms, nets), two=small_step(TASK, nets))
    sharded = tt.compile(tt.ensemble(tt.shard(game, tt.dist.init()), 2), backend="eager")
    assert "rows of all ranks" not in tt.describe(sharded)
    assert "rows of all ranks" not in tt.describe(game, vectors(0))
    lines = tt.describe(sharded, vectors(0)).splitlines()
    at = lines.index("  terms that see the rows of all ranks")
    assert lines[at + 1] == "    mmd    since it couples rows, or does not say that it does not"
    assert lines[at + 2] == "    mixed  since a stage of its reads mixes rows"
    assert lines[at + 3] == "  numbers"
    assert lines.count("  terms that see the rows of all ranks") == 1
