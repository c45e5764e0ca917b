"""The memory is the term's state: the vote is taken from it, then the batch is written."""

from __future__ import annotations

import torch
from torch import Tensor

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.sharded import gap
from tests.support.steps import TASK, run, small_step

TERM = tt.terms.atdoc("student(target)", "student(target).fc:in", "target.index", rows=9, neighbours=2)


def batch(seed: int, *index: int) -> dict[str, dict[str, Tensor]]:
    made = vectors(seed, target=len(index))
    made["target"]["index"] = torch.tensor(index)
    return made


def test_it_votes_then_writes() -> None:
    step = small_step({"task": TASK, "atdoc": TERM}, {"student": tt.functional(mlp(1))})
    first, second = batch(0, 1, 4, 8), batch(1, 2, 3, 0)
    start = step.init(first, seed=0)
    memory = start.terms["atdoc"]
    assert memory["features"].shape == (9, 6)
    assert torch.equal(memory["probabilities"], torch.full((9, 3), 1 / 3, dtype=torch.float64))
    state = start
    for one in (first, second):
        old = tt.align.Memory(**state.terms["atdoc"])
        net = mlp(1)
        net.load_state_dict(state.trainable["student"])
        x, index = one["target"]["x"], one["target"]["index"]
        features = net.hidden(x).relu()
        votes = tt.align.neighbourhood(features, index, old, neighbours=2)
        wanted = tt.align.remember(old, features, net(x), index)
        state, logs = step(state, one)
        torch.testing.assert_close(logs["atdoc"], tt.align.atdoc(net(x), votes).detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(state.terms["atdoc"], wanted._asdict(), rtol=1e-9, atol=0)


def test_compiled_and_as_a_member() -> None:
    step = small_step({"task": TASK, "atdoc": TERM}, {"student": tt.functional(mlp(1))})
    batches = (batch(0, 1, 4, 8), batch(1, 2, 3, 0))
    state = step.init(batches[0], seed=0)
    eager, _ = run(step, state, *batches)
    fast, _ = run(tt.compile(step, backend="aot_eager"), state, *batches)
    torch.testing.assert_close(fast.terms, eager.terms, rtol=1e-9, atol=1e-12)
    members = tt.ensemble(step, 2)
    both, _ = run(members, members.init(batches[0], seed=0), *batches)
    assert both.terms["atdoc"]["features"].shape == (2, 9, 6)


def test_sharded_is_single() -> None:
    step = small_step({"task": TASK, "atdoc": TERM}, {"student": tt.functional(mlp(1))})
    assert gap(step, [batch(0, 1, 4, 8), batch(1, 2, 3, 0)]) < 1e-11
