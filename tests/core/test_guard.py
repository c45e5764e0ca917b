"""The guard in every mode: what is not finite is not kept."""

from __future__ import annotations

import pytest
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import copied, worst
from tests.support.nets import mlp, vectors


def step_of(guard: bool = True) -> tt.Step:
    return tt.step(
        {"net": tt.functional(mlp(1))},
        tt.optim.adamw(1e-2),
        trainable=("net",),
        guard=guard,
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
    )


@pytest.mark.parametrize("mode", ["eager", "compiled", "vmapped"])
@pytest.mark.parametrize("broken", [False, True])
def test_a_broken_batch_leaves_the_state_as_it_was(mode: str, broken: bool) -> None:
    step = step_of()
    if mode == "compiled":
        step = tt.compile(step, backend="aot_eager")
    if mode == "vmapped":
        step = tt.ensemble(step, 2)
    batch = vectors(0)
    state, _ = step(step.init(batch), batch)
    before = copied(state)
    if broken:
        batch["source"]["x"][0, 0] = float("inf")
    new, logs = step(state, batch)
    assert logs["finite"].all() == (not broken)
    assert (worst(new, before) == 0.0) is broken
    assert worst(state, before) == 0.0


def test_without_the_guard_it_is_written() -> None:
    step, batch = step_of(guard=False), vectors(0)
    batch["source"]["x"][0, 0] = float("nan")
    new, logs = step(step.init(batch), batch)
    assert "finite" not in logs
    assert new.trainable["net"]["fc.bias"].isnan().any()


def test_the_guard_changes_no_number_of_a_finite_update() -> None:
    batch = vectors(0)
    one, other = step_of(), step_of(guard=False)
    assert worst(one(one.init(batch), batch)[0], other(other.init(batch), batch)[0]) == 0.0
