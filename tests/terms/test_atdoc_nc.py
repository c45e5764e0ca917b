"""The centres are the term's state: the labels are taken from them, then the batch moves them."""

from __future__ import annotations

import torch

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.sharded import gap
from tests.support.steps import TASK, run, small_step

TERM = tt.terms.atdoc_nc("student(target)", "student(target).fc:in", momentum=0.25)
BATCHES = [vectors(seed, target=3) for seed in (0, 1)]


def test_it_labels_then_moves() -> None:
    step = small_step({"task": TASK, "atdoc": TERM}, {"student": tt.functional(mlp(1))})
    state = step.init(BATCHES[0], seed=0)
    start = state.terms["atdoc"]["centres"]
    assert start.shape == (3, 6)
    torch.testing.assert_close(start.norm(dim=1), torch.ones(3, dtype=torch.float64))
    for one in BATCHES:
        centres = state.terms["atdoc"]["centres"]
        net = mlp(1)
        net.load_state_dict(state.trainable["student"])
        x = one["target"]["x"]
        features = net.hidden(x).relu()
        wanted = tt.align.remember_centres(centres, features, net(x), momentum=0.25)
        state, logs = step(state, one)
        value = tt.align.atdoc_nc(net(x), features, centres).detach()
        torch.testing.assert_close(logs["atdoc"], value, rtol=1e-9, atol=0)
        torch.testing.assert_close(state.terms["atdoc"]["centres"], wanted, rtol=1e-9, atol=0)


def test_compiled_and_as_a_member() -> None:
    step = small_step({"task": TASK, "atdoc": TERM}, {"student": tt.functional(mlp(1))})
    state = step.init(BATCHES[0], seed=0)
    eager, _ = run(step, state, *BATCHES)
    fast, _ = run(tt.compile(step, backend="aot_eager"), state, *BATCHES)
    torch.testing.assert_close(fast.terms, eager.terms, rtol=1e-9, atol=1e-12)
    members = tt.ensemble(step, 2)
    both, _ = run(members, members.init(BATCHES[0], seed=0), *BATCHES)
    assert both.terms["atdoc"]["centres"].shape == (2, 3, 6)


def test_sharded_is_single() -> None:
    step = small_step({"task": TASK, "atdoc": TERM}, {"student": tt.functional(mlp(1))})
    assert gap(step, BATCHES) < 1e-11
