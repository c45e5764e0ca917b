"""Many runs in one step: each member equals its own run."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import Conv, Mlp, conv, images, mlp, vectors
from ttransfer.core import _tree as tree

BATCHES = [vectors(i) for i in range(3)]


def kd_step(p: float = 0.3, module: bool = False) -> tt.Step:
    student = mlp(1, p=p) if module else (lambda: Mlp(p=p).double())
    return tt.step(
        {"student": tt.functional(student), "teacher": tt.functional(mlp(2))},
        tt.optim.sgd(0.1, momentum=0.9),
        trainable=("student",),
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=3.0, weight=0.5),
        dann=tt.terms.dann("student(source).fc:in", "student(target).fc:in", critic=tt.adapters.mlp(4), weight=0.1),
    )


def run(step: tt.Step, state: tt.State, batches: list[dict[str, dict[str, torch.Tensor]]] = BATCHES) -> tt.State:
    for batch in batches:
        state, _ = step(state, batch)
    return state


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_members_with_dropout_equal_their_own_runs(mode: str) -> None:
    """Factories start differently, and masks follow each member's seed."""
    many = tt.ensemble(kd_step(), 3)
    if mode == "compiled":
        many = tt.compile(many, backend="aot_eager")
    state = run(many, many.init(BATCHES[0], seed=5))
    alone = kd_step()
    for i in range(3):
        assert worst(tt.member(state, i), run(alone, alone.init(BATCHES[0], seed=5 + i))) < 1e-12
    weights = state.trainable["student"]["fc.weight"]
    assert not torch.equal(weights[0], weights[1])


def test_a_module_starts_the_same_and_parts_by_dropout() -> None:
    many = tt.ensemble(kd_step(module=True), 2)
    start = many.init(BATCHES[0])
    first = start.trainable["student"]["fc.weight"]
    assert torch.equal(first[0], first[1])
    later = run(many, start).trainable["student"]["fc.weight"]
    assert not torch.equal(later[0], later[1])


def test_stacked_batches_go_one_to_each_member() -> None:
    stacked = [tree.map(lambda *x: torch.stack(x), vectors(i), vectors(i + 10)) for i in range(3)]
    many = tt.ensemble(kd_step(), 2, batches="stacked")
    state = run(many, many.init(stacked[0]), stacked)
    alone = kd_step()
    for i in range(2):
        own = run(alone, alone.init(vectors(10 * i), seed=i), [vectors(k + 10 * i) for k in range(3)])
        assert worst(tt.member(state, i), own) < 1e-12


def test_batch_normalisation_is_stacked() -> None:
    step = tt.step(
        {"net": tt.functional(lambda: Conv(p=0.2).double())},
        tt.optim.adamw(1e-2),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
        coral=tt.term(tt.align.coral, "net(source).fc:in", "net(target).fc:in"),
    )
    batches = [images(i) for i in range(3)]
    many = tt.ensemble(step, 2)
    state = run(many, many.init(batches[0]), batches)
    for i in range(2):
        assert worst(tt.member(state, i), run(step, step.init(batches[0], seed=i), batches)) < 1e-12


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_sweep_members_equal_their_own_runs(mode: str) -> None:
    grid = tt.grid({"kd.temperature": [1.0, 4.0], "optim.lr": [0.1, 0.01], "dann.scale": [0.5]})
    many = tt.sweep(kd_step(), grid)
    if mode == "compiled":
        many = tt.compile(many, backend="aot_eager")
    state = run(many, many.init(BATCHES[0], seed=2))
    alone = kd_step()
    for i in range(4):
        own = tt.set_hyper(alone.init(BATCHES[0], seed=2), {name: values[i] for name, values in grid.items()})
        assert worst(tt.member(state, i), run(alone, own)) < 1e-12


def test_a_sweep_of_an_ensemble_has_two_indices() -> None:
    many = tt.sweep(tt.ensemble(kd_step(), 2), {"kd.weight": [0.0, 1.0, 2.0]})
    state = run(many, many.init(BATCHES[0]))
    alone = kd_step()
    own = run(alone, tt.set_hyper(alone.init(BATCHES[0], seed=1), {"kd.weight": 2.0}))
    assert worst(tt.member(state, 2, 1), own) < 1e-12
    assert tt.predict(many, state, "student")(BATCHES[0]["source"]["x"]).shape == (3, 2, 6, 3)


def test_a_schedule_is_swept_by_its_own_numbers() -> None:
    step = tt.replace(kd_step(), optimizer=tt.optim.sgd(tt.schedules.cosine(0.1, 10)))
    state = tt.sweep(step, {"optim.lr.peak": [0.1, 0.2]}).init(BATCHES[0])
    assert state.hyper["optim.lr.peak"].tolist() == [0.1, 0.2]
    with pytest.raises(tt.TransferError, match=r"no hyper-parameter 'optim.lr'.*optim.lr.peak"):
        tt.sweep(step, {"optim.lr": [0.1]}).init(BATCHES[0])


def test_compilation_stays_outermost() -> None:
    fast = tt.compile(kd_step(), backend="aot_eager")
    many = tt.ensemble(fast, 2)
    assert [t.name for t in many.spec.transforms] == ["ensemble", "compile"]
    state = run(many, many.init(BATCHES[0]))
    alone = kd_step()
    assert worst(tt.member(state, 1), run(alone, alone.init(BATCHES[0], seed=1))) < 1e-12


def test_a_member_that_fails_leaves_the_others_alone() -> None:
    many = tt.ensemble(kd_step(p=0.0), 2)
    state = many.init(BATCHES[0])
    state.trainable["student"]["fc.bias"][0, 0] = float("nan")
    new, logs = many(state, BATCHES[0])
    assert logs["finite"].tolist() == [False, True]
    assert new.step.tolist() == [0, 1]
    before, after = tt.member(state, 0), tt.member(new, 0)
    for x, y in zip(tree.leaves(before), tree.leaves(after), strict=True):
        assert torch.equal(x, y) or x.isnan().any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: tt.ensemble(s, 0), "n must be a whole number of at least 1, got 0"),
        (lambda s: tt.ensemble(s, cast(Any, 2.5)), "n must be a whole number of at least 1, got 2.5"),
        (lambda s: tt.sweep(s, cast(Any, {"kd.weight": ["1", "2"]})), "sweep: wanted numbers for 'kd.weight'"),
        (lambda s: tt.sweep(s, cast(Any, {"kd.weight": "12"})), "sweep: wanted numbers for 'kd.weight', got '12'"),
        (lambda s: tt.ensemble(s, 2, batches="own"), "batches must be"),
        (lambda s: tt.sweep(s, {"kd.weight": [1.0], "optim.lr": [1.0, 2.0]}), "zipped"),
        (lambda s: tt.sweep(s, {}), "one length"),
        (lambda s: tt.sweep(s, {"kd.temprature": [1.0]}).init(BATCHES[0]), "did you mean 'kd.temperature'"),
        (lambda s: tt.ensemble(s, 3, batches="stacked").init(BATCHES[0]), "leading dimension of 3"),
        (lambda s: tt.member(s.init(BATCHES[0]), 0), "one run"),
        (lambda s: tt.member(tt.ensemble(s, 2).init(BATCHES[0]), 2), "no member 2, there are 2"),
        (lambda s: s(tt.ensemble(s, 2).init(BATCHES[0]), BATCHES[0]), "stacked 1 deep"),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(tt.TransferError, match=message):
        make(kd_step())  # type: ignore[operator]


def test_a_plain_net_of_images_is_unchanged_by_stacking() -> None:
    """A member's tensors share nothing with the stack."""
    step = tt.step(
        {"net": tt.functional(conv(1))},
        tt.optim.sgd(0.1),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
    )
    state = tt.ensemble(step, 2).init(images(0))
    one = tt.member(state, 0)
    one.trainable["net"]["fc.bias"].fill_(7.0)
    assert not (state.trainable["net"]["fc.bias"] == 7.0).any()
