"""Replacing parts of a step: what changes, what stays, and what was done to the step since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import conv, images, mlp, vectors
from tests.support.steps import TASK, refused, run, small_step

BATCH = vectors(0)
BATCHES = [vectors(seed) for seed in range(2)]
KD = tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=2.0)
ENT = tt.term(tt.losses.entropy, "student(target)", weight=0.3)


def same(one: tt.Step, two: tt.Step, batches: Any = BATCHES) -> bool:
    return worst(run(one, one.init(batches[0]), *batches), run(two, two.init(batches[0]), *batches)) == 0.0


def test_terms_come_go_and_change_in_place() -> None:
    nets = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
    base = small_step({"task": TASK, "kd": KD}, nets)
    more = tt.replace(base, ent=ENT)
    assert list(more.spec.expression.terms) == ["task", "kd", "ent"]
    assert list(tt.replace(base, task=None, ent=ENT).spec.expression.terms) == ["kd", "ent"]
    assert list(tt.replace(base, task=ENT).spec.expression.terms) == ["task", "kd"]
    assert list(tt.replace(base, terms={"ent": ENT}, task=TASK).spec.expression.terms) == ["ent", "task"]
    assert list(base.spec.expression.terms) == ["task", "kd"]
    assert same(more, small_step({"task": TASK, "kd": KD, "ent": ENT}, nets))
    assert same(tt.replace(more, ent=None), base)


def test_options_change_and_none_takes_them_back() -> None:
    nets = {"student": tt.functional(conv(1)), "teacher": tt.functional(conv(2))}
    batches = [images(seed) for seed in range(2)]
    terms = {"task": TASK, "ent": ENT}
    base = small_step(terms, nets)
    options: dict[str, Any] = {
        "trainable": {"student": "fc.*"},
        "joint": [["source", "target"]],
        "buffers": {"student": "eval"},
        "ema": {"mean": tt.ema("student")},
        "accumulate": 2,
        "guard": False,
        "optimizer": tt.optim.adam(0.1),
    }
    for name, value in options.items():
        built = small_step(terms, nets, **{name: value})
        changed = tt.replace(base, **{name: value})
        assert same(changed, built, batches), name
    for name in ("joint", "buffers", "accumulate"):
        assert not same(tt.replace(base, **{name: options[name]}), base, batches), name
    assert same(tt.replace(tt.replace(base, buffers={"student": "eval"}), buffers=None), base, batches)
    assert same(tt.replace(tt.replace(base, ema={"mean": tt.ema("student")}), ema=None), base, batches)
    assert same(tt.replace(tt.replace(base, joint=[("source", "target")]), joint=()), base, batches)


def test_what_was_done_to_a_step_is_done_again() -> None:
    base = small_step({"task": TASK, "kd": KD})
    made = tt.compile(tt.sweep(tt.ensemble(base, 2), {"kd.temperature": [1.0, 2.0, 3.0]}), backend="aot_eager")
    changed = tt.replace(made, task=None)
    assert [t.name for t in changed.spec.transforms] == ["ensemble", "sweep", "compile"]
    assert changed.spec.transforms[-1].options["backend"] == "aot_eager"
    state = changed.init(BATCH)
    assert tuple(state.step.shape) == (3, 2)
    assert "task.weight" not in state.hyper
    plain = tt.sweep(tt.ensemble(tt.replace(base, task=None), 2), {"kd.temperature": [1.0, 2.0, 3.0]})
    assert worst(changed(state, BATCH), plain(plain.init(BATCH), BATCH)) < 1e-12


def test_what_is_swept_must_stay() -> None:
    many = tt.sweep(small_step({"task": TASK, "kd": KD}), {"kd.temperature": [1.0, 2.0]})
    refused(lambda: tt.replace(many, kd=None).init(BATCH), "sweep", "'kd.temperature'")


def test_phases_of_a_game_come_go_and_change() -> None:
    nets = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
    one, two = small_step({"task": TASK}, nets), small_step({"ent": ENT}, nets)
    three = small_step({"kd": KD}, nets)
    game = tt.alternate(one=one, two=two, order=("one", "two", "one"))
    more = tt.replace(game, three=three)
    assert more.spec.expression.order == ("one", "two", "one", "three")
    assert same(more, tt.alternate(one=one, two=two, three=three, order=("one", "two", "one", "three")))
    assert tt.replace(game, two=None).spec.expression.order == ("one", "one")
    assert same(tt.replace(game, two=three), tt.alternate(one=one, two=three, order=("one", "two", "one")))
    assert same(tt.replace(game, order=("two", "one")), tt.alternate(one=one, two=two, order=("two", "one")))
    stacked = tt.replace(tt.ensemble(game, 2), two=None)
    assert tuple(stacked.init(BATCH).step.shape) == (2,)
    assert list(game.spec.expression.phases) == ["one", "two"]


BAD: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "a term that is not there": (
        lambda: tt.replace(small_step({"task": TASK}), tsk=None),
        ("no term 'tsk' to leave out", "did you mean 'task'?"),
    ),
    "the last term": (lambda: tt.replace(small_step({"task": TASK}), task=None), ("no terms",)),
    "no terms": (lambda: tt.replace(small_step({"task": TASK}), terms=None), ("no terms",)),
    "a loss for a term": (lambda: tt.replace(small_step(), kd=F.mse_loss), ("term 'kd' is function", "tt.term(")),
    "a string for groups": (
        lambda: tt.replace(small_step(), joint=("source", "target")),
        ("joint=[('source', 'target')]",),
    ),
    "a string for what trains": (lambda: tt.replace(small_step(), trainable="student"), ("('student',)",)),
    "a phase that is no step": (
        lambda: tt.replace(tt.alternate(one=small_step()), one=TASK),
        ("phases of an alternation are steps", "one="),
    ),
    "a phase that is not there": (
        lambda: tt.replace(tt.alternate(one=small_step()), on=None),
        ("on=None", "did you mean 'one'?"),
    ),
    "a term of a phase": (lambda: tt.replace(tt.alternate(one=small_step()), task=None), ("task=None",)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_replacement_is_refused(name: str) -> None:
    make, parts = BAD[name]
    refused(make, *parts)
