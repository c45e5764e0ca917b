"""What `tt.step` refuses, and what it derives: forwards, taps, fields, what trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.nets import conv, mlp
from tests.support.steps import TASK, refused, small_step
from ttransfer.core._spec import Pass, declared, plan_of, slot_names


def reading(*paths: str) -> dict[str, tt.Term]:
    return {"t": tt.term(lambda *xs: xs[0].mean(), *paths)}


class Mixed(nn.Module):
    """A net with an integer parameter, as quantised ones have."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)
        self.codes = nn.Parameter(torch.arange(3), requires_grad=False)


BAD: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "unknown net": (
        lambda: small_step(reading("studnt(source)")),
        ("'t'", "studnt(source)", "did you mean 'student'?"),
    ),
    "unknown net in params": (lambda: small_step(reading("techer:params")), ("techer:params", "'teacher'")),
    "unknown net in fn": (lambda: small_step(reading("techer:fn")), ("techer:fn", "'teacher'")),
    "unknown tap": (
        lambda: small_step(reading("student(source).hiden:in")),
        ("'t'", "student(source).hiden:in", "no submodule 'hiden'", "did you mean 'hidden'?"),
    ),
    "field of a net": (lambda: small_step(reading("teacher.y")), ("'teacher' is a net", "teacher(domain).y")),
    "net as domain": (lambda: small_step(reading("student(teacher)")), ("'teacher' names a net and a domain",)),
    "pattern that matches nothing": (
        lambda: small_step(trainable={"student": "hiden.*"}),
        ("'hiden.*'", "'student'", "did you mean 'hidden.bias' or 'hidden.weight'?"),
    ),
    "second pattern that matches nothing": (
        lambda: small_step(trainable={"student": ["fc.*", "head"]}),
        ("'head'", "there are: fc.bias, fc.weight, hidden.bias, hidden.weight"),
    ),
    "no regular expression": (lambda: small_step(trainable={"student": "fc.("}), ("'fc.('", "no regular expression")),
    "unknown trainable": (lambda: small_step(trainable=("studen",)), ("'studen'", "did you mean 'student'?")),
    "trainable is a string": (lambda: small_step(trainable="student"), ("('student',)",)),
    "nothing trainable": (lambda: small_step(trainable=()), ("nothing is trainable",)),
    "frozen net": (
        lambda: small_step(nets={"student": tt.functional(mlp(1).requires_grad_(False))}),
        ("'student' is named trainable but frozen", "requires_grad=False", "trainable={'student': '.*'}"),
    ),
    "net without parameters": (
        lambda: small_step(nets={"student": tt.functional(nn.ReLU())}),
        ("'student'", "it has no parameters"),
    ),
    "integer parameter": (
        lambda: small_step(nets={"student": tt.functional(Mixed())}, trainable={"student": ".*"}),
        ("'codes' of 'student' is torch.int64", "leave it out of trainable"),
    ),
    "average trained": (
        lambda: small_step(ema={"mean": tt.ema("student")}, trainable=("student", "mean")),
        ("'mean' is an average of 'student'", "cannot be trained"),
    ),
    "average of no net": (lambda: small_step(ema={"mean": tt.ema("studnt")}), ("'mean'", "'studnt'", "'student'")),
    "average named as a net": (lambda: small_step(ema={"teacher": tt.ema("student")}), ("'teacher'", "a net already")),
    "average that is a string": (lambda: small_step(ema={"mean": "student"}), ("ema 'mean' is str", "tt.ema(")),
    "net named terms": (
        lambda: small_step(nets={"terms": tt.functional(mlp(1))}, trainable=("terms",)),
        ("no net may be named 'terms'",),
    ),
    "net named optim": (lambda: small_step(nets={"optim": tt.functional(mlp(1))}), ("no net may be named 'optim'",)),
    "net named with a dot": (lambda: small_step(nets={"a.b": tt.functional(mlp(1))}), ("'a.b'", "identifier")),
    "net not wrapped": (lambda: small_step(nets={"student": mlp(1)}), ("'student' is Mlp", "tt.functional(")),
    "term named as an option": (
        lambda: small_step({"accumulate": TASK}),
        ("a term cannot be named 'accumulate'", "option"),
    ),
    "term named as the loss": (lambda: small_step({"loss": TASK}), ("'loss' cannot name a term",)),
    "term named finite": (lambda: small_step({"finite": TASK}), ("'finite' cannot name a term",)),
    "term named as an average": (
        lambda: small_step({"mean": TASK}, ema={"mean": tt.ema("student")}),
        ("'mean' cannot name a term",),
    ),
    "term twice": (lambda: small_step({"task": TASK}, task=TASK), ("'task' is given twice",)),
    "term that is a loss": (lambda: small_step({"t": F.cross_entropy}), ("term 't' is function", "tt.term(")),
    "no terms": (lambda: tt.replace(small_step(), terms={}), ("no terms",)),
    "optimizer of torch": (
        lambda: small_step(optimizer=torch.optim.SGD(mlp(1).parameters(), lr=0.1)),
        ("the optimizer is SGD", "tt.optim"),
    ),
    "buffers of no net": (lambda: small_step(buffers={"studnt": "eval"}), ("'studnt'", "'student'")),
    "unknown buffer policy": (lambda: small_step(buffers={"student": "perdomain"}), ("'perdomain'", "'per_domain'")),
    "average of a net per domain": (
        lambda: small_step(buffers={"student": "per_domain"}, ema={"mean": tt.ema("student")}),
        ("'mean'", "per domain"),
    ),
    "function of a net per domain": (
        lambda: small_step({"task": TASK, **reading("student:fn")}, buffers={"student": "per_domain"}),
        ("student:fn", "per domain"),
    ),
    "joint per domain": (
        lambda: small_step(
            reading("student(source)", "student(target)"),
            joint=[("source", "target")],
            buffers={"student": "per_domain"},
        ),
        ("student(source + target)", "per_domain"),
    ),
    "joint that joins nothing": (
        lambda: small_step(reading("student(source)", "teacher(target)"), joint=[("source", "target")]),
        ("('source', 'target')", "joins nothing"),
    ),
    "joint that overlaps": (
        lambda: small_step(
            reading("student(source)", "student(target)", "student(other)"),
            joint=[("source", "target"), ("target", "other")],
        ),
        ("joint names 'target' twice",),
    ),
    "joint with an unknown domain": (
        lambda: small_step(reading("student(source)", "student(target)"), joint=[("source", "target", "targt")]),
        ("'targt'", "did you mean 'target'?"),
    ),
    "joint that is no list of groups": (
        lambda: small_step(reading("student(source)", "student(target)"), joint=("source", "target")),
        ("joint=[('source', 'target')]",),
    ),
    "accumulate coupled": (
        lambda: small_step({"m": tt.term(tt.align.mmd, "student(source)", "student(target)")}, accumulate=2),
        ("term 'm' couples the rows", "coupled=False"),
    ),
    "accumulate undeclared": (
        lambda: small_step(reading("student(source)"), accumulate=2),
        ("term 't'", "does not say that it does not", "coupled=False"),
    ),
    "accumulate zero": (lambda: small_step(accumulate=0), ("accumulate", "0")),
    "accumulate a fraction": (lambda: small_step(accumulate=2.0), ("whole number", "2.0")),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_expression_is_refused_when_the_step_is_built(name: str) -> None:
    make, parts = BAD[name]
    refused(make, *parts)


def plan(terms: dict[str, tt.Term], **options: Any) -> Any:
    return plan_of(small_step(terms, **options).spec.expression)


def test_forwards_run_in_order_of_first_mention_and_are_shared() -> None:
    found = plan(
        {
            "a": tt.term(tt.align.mmd, "student(target).fc:in", "student(source)"),
            "b": tt.term(tt.losses.kd, "student(source)#2", "teacher(source)"),
            "c": tt.term(tt.losses.kd, "student(target)", "student(source)#2"),
        }
    )
    assert found.passes == (
        Pass("student", ("target",), 1),
        Pass("student", ("source",), 1),
        Pass("student", ("source",), 2),
        Pass("teacher", ("source",), 1),
    )
    assert [str(tap) for tap in found.taps["student"]] == ["fc:in"]
    assert not found.taps["teacher"]


def test_joined_domains_run_where_the_first_is_mentioned_in_the_order_of_the_group() -> None:
    terms = {
        "a": tt.term(tt.losses.entropy, "student(target)"),
        "b": tt.term(tt.losses.kd, "student(source)", "teacher(source)"),
    }
    found = plan(terms, joint=[("source", "target")])
    assert found.passes == (Pass("student", ("source", "target"), 1), Pass("teacher", ("source",), 1))


def test_only_what_is_read_is_asked_of_a_batch() -> None:
    nets = {"student": tt.functional(mlp(1), inputs=("weak",)), "teacher": tt.functional(mlp(2), inputs=("strong",))}
    step = small_step({"kd": tt.term(tt.losses.kd, "student(source)", "teacher(target)"), "task": TASK}, nets)
    found = plan_of(step.spec.expression)
    assert found.fields == {"source": ("weak", "y"), "target": ("strong",)}


def test_what_trains_follows_from_names_and_patterns() -> None:
    half = mlp(1)
    half.fc.requires_grad_(False)
    nets = {"student": tt.functional(half), "teacher": tt.functional(mlp(2))}

    def learned(trainable: Any) -> dict[str, set[str]]:
        found = plan_of(small_step(nets=nets, trainable=trainable).spec.expression).learned
        return {net: set(names) for net, names in found.items()}

    assert learned(("student",)) == {"student": {"hidden.weight", "hidden.bias"}}
    assert learned({"student": "fc.*"}) == {"student": {"fc.weight", "fc.bias"}}
    assert learned({"student": ["fc.bias", ".*weight"]}) == {"student": {"fc.bias", "fc.weight", "hidden.weight"}}
    assert learned({"student": (), "teacher": "fc.bias"}) == {
        "student": {"hidden.weight", "hidden.bias"},
        "teacher": {"fc.bias"},
    }


def test_mode_follows_from_training_unless_forced() -> None:
    def training(**modes: str) -> frozenset[str]:
        nets = {name: tt.functional(mlp(1), mode=modes.get(name)) for name in ("student", "teacher")}
        ema = {"mean": tt.ema("student"), "own": tt.ema("student", buffers="own")}
        return plan_of(small_step(nets=nets, ema=ema).spec.expression).training

    assert training() == {"student", "own"}
    assert training(student="eval", teacher="train") == {"teacher", "own"}


def test_slots_and_numbers_have_the_names_of_the_state() -> None:
    terms = {"m": tt.term(tt.align.mmd, "student(source)", "student(target)", weight=tt.schedules.ramp(9))}
    nets = {"student": tt.functional(conv(1)), "unread": tt.functional(conv(2))}
    expression = small_step(terms, nets, buffers={"student": "per_domain", "unread": "per_domain"}).spec.expression
    found = plan_of(expression)
    assert slot_names(expression, found, "student") == ("student(source)", "student(target)")
    assert slot_names(expression, found, "unread") == ("unread",)
    assert set(declared(expression)) == {"m.weight", "optim.lr", "optim.weight_decay"}
