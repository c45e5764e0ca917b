"""The first state of a sharded step."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import mlp, vectors
from tests.support.sharded import cut, part
from tests.support.steps import small_step
from ttransfer.dist._inside import trained
from ttransfer.dist._ranks import Ranks
from ttransfer.testing._threads import run_ranks

TASK = {"task": tt.term(F.cross_entropy, "student(source)", "source.y")}


def test_all_ranks_start_as_the_first_does() -> None:
    nets = [{"student": tt.functional(mlp(seed))} for seed in range(3)]  # built under different random states
    steps, batch = [small_step(TASK, own) for own in nets], vectors(0)
    states = run_ranks(3, lambda ranks: tt.shard(steps[ranks.rank], ranks).init(batch))
    wanted = steps[0].init(batch)
    assert [worst(state, wanted) for state in states] == [0, 0, 0]


def test_what_each_phase_trains() -> None:
    shared = {"student": tt.functional(mlp(1))}
    game = tt.alternate(head=small_step(TASK, shared, trainable={"student": "fc.*"}), all=small_step(TASK, shared))
    state = game.init(vectors(0))
    found = {name: sorted(tree["student"]) for name, (_, tree) in trained(game.spec.expression, state).items()}
    assert found["head"] == ["fc.bias", "fc.weight"]
    assert len(found["all"]) == 4
    (only,) = run_ranks(1, lambda ranks: tt.shard(game, ranks, optimizer="sharded").init(vectors(0)))
    assert set(only.opt) == {"head", "all"}
    assert torch.equal(only.step, torch.tensor(0))


def test_ranks_are_what_a_mesh_says() -> None:
    from ttransfer.dist._shard import ranks_of

    assert ranks_of(tt.dist.init())[:2] == (0, 1)
    assert ranks_of(Ranks(1, 2, "x")) == Ranks(1, 2, "x")


def test_a_loss_that_wants_two_rows_starts_on_ranks_of_one() -> None:
    step = small_step({"mmd": tt.term(tt.align.mmd_unbiased, "student(source)", "student(target)")})
    batch = vectors(0, source=2, target=2)
    states = run_ranks(2, lambda ranks: tt.shard(step, ranks).init(part(batch, ranks.rank, cut(batch, 2))))
    assert [worst(state, step.init(batch)) for state in states] == [0, 0]
