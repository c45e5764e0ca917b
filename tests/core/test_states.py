"""A state of another step is refused, with what is different."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import mlp, vectors
from tests.support.steps import TASK, refused, small_step
from ttransfer.core import _tree as tree

BATCH = vectors(0)
KD = tt.term(tt.losses.kd, "student(source)", "teacher(source)")


def base() -> tt.Step:
    return small_step({"task": TASK, "kd": KD}, ema={"mean": tt.ema("student")})


def game(**changes: Any) -> tt.Step:
    nets = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
    two = small_step({"kd": tt.term(tt.losses.kd, "teacher(source)", "student(source)")}, nets, trainable=("teacher",))
    return tt.alternate(one=small_step({"kd": KD}, nets), two=tt.replace(two, **changes))


OTHERS: dict[str, tuple[Callable[[], tt.Step], tuple[str, ...]]] = {
    "another term": (lambda: tt.replace(base(), kd=None), ("terms missing: kd",)),
    "a term more": (
        lambda: tt.replace(base(), more=tt.term(tt.losses.entropy, "student(source)")),
        ("terms not the step's: more",),
    ),
    "another net": (
        lambda: tt.replace(base(), kd=None, nets={"student": tt.functional(mlp(1))}),
        ("nets missing: teacher",),
    ),
    "no average": (lambda: tt.replace(base(), ema=None), ("nets missing: mean",)),
    "another net of the name": (
        lambda: tt.replace(
            base(), nets={"student": tt.functional(nn.Linear(5, 3).double()), "teacher": tt.functional(mlp(2))}
        ),
        ("trained parameters of 'student' missing: fc.bias", "not the step's: bias, weight"),
    ),
    "other parameters trained": (
        lambda: tt.replace(base(), trainable={"student": "fc.*"}),
        ("trained parameters of 'student' missing: hidden.bias, hidden.weight",),
    ),
    "another net trained": (
        lambda: tt.replace(base(), trainable=("student", "teacher")),
        ("trained parameters of 'teacher' not the step's: fc.bias, fc.weight, hidden.bias, hidden.weight",),
    ),
    "another optimizer": (
        lambda: tt.replace(base(), optimizer=tt.optim.adam(0.1)),
        ("hyper-parameters missing: optim.weight_decay", "not the step's: optim.beta1"),
    ),
    "momentum": (
        lambda: tt.replace(base(), optimizer=tt.optim.sgd(0.1, momentum=0.9)),
        ("hyper-parameters not the step's: optim.dampening, optim.momentum",),
    ),
    "a schedule": (
        lambda: tt.replace(base(), optimizer=tt.optim.sgd(tt.schedules.cosine(0.1, 9))),
        ("hyper-parameters missing: optim.lr and", "not the step's: optim.lr."),
    ),
    "another loss of the name": (
        lambda: tt.replace(base(), kd=tt.term(F.mse_loss, "student(source)", "teacher(source)")),
        ("hyper-parameters missing: kd.temperature",),
    ),
    "another policy of buffers": (
        lambda: tt.replace(base(), ema={}, buffers={"student": "per_domain"}),
        ("nets missing: mean",),
    ),
    "a game": (game, ("nets missing: mean",)),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_a_state_of_another_step_is_refused(name: str, mode: str) -> None:
    make, parts = OTHERS[name]
    step = base() if mode == "eager" else tt.compile(base(), backend="aot_eager")
    state = make().init(BATCH)
    refused(lambda: step(state, BATCH), "this state is of another step", "step.init", *parts)


GAMES: dict[str, tuple[Callable[[], tt.Step], tuple[str, ...]]] = {
    "a plain step": (base, ("phases missing: one, two",)),
    "a phase less": (lambda: tt.replace(game(), two=None), ("phases missing: two",)),
    "a phase that trains less": (
        lambda: game(trainable={"teacher": "fc.*"}),
        ("trained parameters of 'teacher' missing: hidden.bias, hidden.weight",),
    ),
    "a phase with another optimizer": (
        lambda: game(optimizer=tt.optim.adam(0.1)),
        ("hyper-parameters missing: two.optim.weight_decay", "two.optim.beta1"),
    ),
    "a phase with another term": (
        lambda: game(ent=tt.term(tt.losses.entropy, "teacher(source)")),
        ("terms not the step's: two.ent",),
    ),
}


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_a_state_of_another_game_is_refused(name: str, mode: str) -> None:
    make, parts = GAMES[name]
    step = game() if mode == "eager" else tt.compile(game(), backend="aot_eager")
    state = make().init(BATCH)
    refused(lambda: step(state, BATCH), "this state is of another step", "step.init", *parts)


def test_no_state_at_all_is_refused() -> None:
    step = base()
    state = step.init(BATCH)
    refused(lambda: step(BATCH, state), "a step takes (state, batch)", "dict")  # type: ignore[arg-type]
    refused(lambda: step(tuple(state), BATCH), "a step takes (state, batch)", "tuple")  # type: ignore[arg-type]


def test_a_stacked_state_is_refused_by_the_step_of_one_run() -> None:
    step = base()
    many = tt.ensemble(step, 2).init(BATCH)
    refused(lambda: step(many, BATCH), "stacked 1 deep", "tt.member(state, i)")
    refused(lambda: tt.compile(step, backend="aot_eager")(many, BATCH), "stacked 1 deep", "tt.member(state, i)")
    step(tt.member(many, 1), BATCH)


def test_what_may_differ_is_accepted() -> None:
    """A number that is static in one and lifted in the other, and a state whose dicts are in another order."""
    smooth = small_step({"t": tt.term(F.cross_entropy, "student(source)", "source.y", label_smoothing=0.1)})
    state = smooth.init(BATCH)
    smooth(state, BATCH)
    step = base()
    state = step.init(BATCH)
    turned = tree.map(lambda x: x, state)
    turned = tt.State(
        *(dict(reversed(part.items())) if isinstance(part, dict) else part for part in turned[:7]),
        state.step,
        state.seed,
    )
    assert list(turned.hyper) == list(reversed(state.hyper))
    ordered, free = step(state, BATCH)[0], step(turned, BATCH)[0]
    assert worst(ordered.trainable["student"], free.trainable["student"]) < torch.finfo(torch.float64).eps
