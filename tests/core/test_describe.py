"""Steps in words."""

from __future__ import annotations

from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import copied, worst
from tests.support.nets import conv, images, mlp, vectors
from tests.support.steps import TASK, small_step

BATCH = images(0)


def whole() -> tt.Step:
    nets = {"student": tt.functional(conv(1, p=0.1)), "teacher": tt.functional(conv(2))}
    terms = {
        "task": tt.term(F.cross_entropy, "student(source)", "source.y", label_smoothing=0.1),
        "kd": tt.term(
            tt.losses.kd, "student(target)", "mean(target)", temperature=tt.fixed(2.0), weight=tt.schedules.ramp(9)
        ),
        "dann": tt.terms.dann(
            tt.read("student(source).fc:in") | tt.detach, "student(target).fc:in", critic=tt.adapters.mlp(4), weight=0.1
        ),
        "sp": tt.term(lambda p: p["fc.bias"].square().sum(), "student:params", weight=tt.fixed(0.5)),
    }
    return small_step(
        terms, nets, tt.optim.adamw(1e-3), trainable={"student": "fc.*|bn.*"}, ema={"mean": tt.ema("student", 0.99)}
    )


def test_everything_about_a_step_is_told() -> None:
    assert tt.describe(whole(), BATCH).splitlines() == [
        "forwards, in the order they run",
        "  student(source)  train, gradient, taps fc:in, buffers student (shared)",
        "  student(target)  train, gradient, taps fc:in, buffers student (shared)",
        "  mean(target)     eval, no gradient",
        "averages",
        "  mean = average of student  eval, buffers copy",
        "terms",
        "  task  1.0 * cross_entropy(student(source) (6, 3), source.y (6,))  mean, splits",
        "  kd    schedule(steps=9, high=1, alpha=10) * kd(student(target) (4, 3), mean(target) (4, 3))  mean, splits",
        "  dann  0.1 * dann(student(source).fc:in (6, 4) | detach, student(target).fc:in (4, 4))  couples rows",
        "  sp    0.5 * <lambda>(student:params)  couples rows",
        "numbers",
        "  task.weight           1.0                                   lifted",
        "  task.label_smoothing  0.1                                   static: cross_entropy takes no tensor for it",
        "  kd.weight             schedule(steps=9, high=1, alpha=10)   lifted",
        "  kd.temperature        2.0                                   static: fixed",
        "  dann.weight           0.1                                   lifted",
        "  dann.scale            1.0                                   lifted",
        "  sp.weight             0.5                                   static: fixed",
        "  optim.lr              0.001                                 lifted",
        "  optim.beta1           0.9                                   lifted",
        "  optim.beta2           0.999                                 lifted",
        "  optim.eps             1e-08                                 lifted",
        "  optim.weight_decay    0.01                                  lifted",
        "  mean.decay            0.99                                  lifted",
        "parameters",
        "  student     23 trained, 36 frozen",
        "  teacher     0 trained, 59 frozen",
        "  terms.dann  25 trained",
        "random draws",
        "  all from the state's seed",
    ]


def test_without_a_batch_what_it_would_tell_is_left_open() -> None:
    text = tt.describe(whole())
    assert "task  1.0 * cross_entropy(student(source), source.y)" in text
    assert "task.label_smoothing  0.1" in text
    assert "tried at init" in text
    assert text.endswith("give an example batch to see shapes, which numbers are lifted, and random draws")


def test_policies_groups_and_micro_batches_are_told() -> None:
    nets = {"student": tt.functional(conv(1))}
    two = {"task": TASK, "ent": tt.term(tt.losses.entropy, "student(target)")}
    text = tt.describe(small_step(two, nets, buffers={"student": "per_domain"}, accumulate=2))
    assert "student(source)  train, gradient, buffers student(source) (per_domain)" in text
    assert "micro-batches\n  2" in text
    joined = tt.describe(small_step(two, nets, joint=[("source", "target")]))
    assert "  student(source + target)  train, gradient, buffers student (shared)" in joined
    again = {"kd": tt.term(tt.losses.kd, "student(source)", "student(source)#2")}
    assert "  student(source)#2  train" in tt.describe(small_step(again, nets))


def test_games_and_what_was_done_to_a_step_are_told() -> None:
    nets = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
    one = small_step({"task": TASK}, nets)
    two = small_step({"kd": tt.term(tt.losses.kd, "teacher(source)", "student(source)")}, nets, trainable=("teacher",))
    game = tt.alternate(one=one, two=two, order=("one", "two", "one"))
    text = tt.describe(tt.compile(tt.ensemble(game, 3), backend="aot_eager"), vectors(0))
    lines = text.splitlines()
    assert lines[0] == "phases, in turn: one, two, one"
    assert lines.index("phase one") < lines.index("phase two")
    assert "    student(source)  train, gradient" in lines
    assert "    teacher(source)  train, gradient" in lines
    assert lines[-3:] == [
        "then",
        "  ensemble(n=3, batches=shared)",
        "  compile(backend=aot_eager, donate=False, precision=None, rows=static)",
    ]


def test_describing_changes_nothing() -> None:
    step = whole()
    batch = copied(BATCH)
    state = step.init(batch)
    before = copied(state)
    assert tt.describe(step, batch) == tt.describe(step, batch)
    assert worst((state, batch), (before, BATCH)) == 0.0
    assert worst(step.init(batch), before) == 0.0
