"""The rows' labels are the term's state: the thresholds are taken from them, then the batch is written."""

from __future__ import annotations

import torch
from torch import Tensor

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.sharded import gap
from tests.support.steps import TASK, refused, run, small_step

TERM = tt.terms.flexmatch("student(source)", "student(target)", "target.index", rows=9, threshold=0.4)


def batch(seed: int, *index: int) -> dict[str, dict[str, Tensor]]:
    made = vectors(seed, source=len(index), target=len(index))
    made["target"]["index"] = torch.tensor(index)
    return made


BATCHES = batch(0, 1, 4, 8), batch(1, 2, 4, 0)


def test_it_takes_thresholds_then_writes() -> None:
    step = small_step({"task": TASK, "flex": TERM}, {"student": tt.functional(mlp(1))})
    state = step.init(BATCHES[0], seed=0)
    assert state.terms["flex"]["labels"].tolist() == [-1] * 9
    for one in BATCHES:
        labels = state.terms["flex"]["labels"]
        net = mlp(1)
        net.load_state_dict(state.trainable["student"])
        strong, weak = net(one["source"]["x"]), net(one["target"]["x"])
        tau = torch.tensor(0.4)
        limits = tt.align.flexible_thresholds(labels, classes=3, threshold=tau)
        wanted = tt.align.remember_labels(labels, weak, one["target"]["index"], threshold=tau)
        state, logs = step(state, one)
        torch.testing.assert_close(logs["flex"], tt.align.flexmatch(strong, weak, limits).detach(), rtol=1e-9, atol=0)
        assert torch.equal(state.terms["flex"]["labels"], wanted)
    assert (state.terms["flex"]["labels"] >= 0).any()


def test_compiled_and_as_a_member() -> None:
    step = small_step({"task": TASK, "flex": TERM}, {"student": tt.functional(mlp(1))})
    state = step.init(BATCHES[0], seed=0)
    eager, _ = run(step, state, *BATCHES)
    fast, _ = run(tt.compile(step, backend="aot_eager"), state, *BATCHES)
    assert torch.equal(fast.terms["flex"]["labels"], eager.terms["flex"]["labels"])
    members = tt.ensemble(step, 2)
    both, _ = run(members, members.init(BATCHES[0], seed=0), *BATCHES)
    assert both.terms["flex"]["labels"].shape == (2, 9)


def test_sharded_is_single() -> None:
    step = small_step({"task": TASK, "flex": TERM}, {"student": tt.functional(mlp(1))})
    assert gap(step, list(BATCHES)) < 1e-11


def test_what_is_refused() -> None:
    refused(lambda: tt.terms.flexmatch("a(b)", "a(c)", "c.index", rows=0), "flexmatch: wanted a whole number", "rows")
