"""The laws of steps: those made with this library obey them, and for each law there is one that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.nets import conv, images, mlp, vectors
from tests.support.steps import TASK
from ttransfer.core import _tree as tree
from ttransfer.testing._law import LawBroken, judge
from ttransfer.testing._steps import LAWS, check_step, step_trial

VECTORS, IMAGES = vectors(0), images(0)
KD = tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=4.0, weight=0.5)
MMD = tt.term(tt.align.mmd, "student(source).fc:in", "student(target).fc:in", weight=0.3)
SCALE = tt.schedules.ramp(100)
DANN = tt.terms.dann(
    "student(source).fc:in", "student(target).fc:in", critic=tt.adapters.mlp(4), scale=SCALE, weight=0.1
)
NETS = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
CONVS = {"student": tt.functional(conv(1, p=0.5)), "teacher": tt.functional(conv(2))}


def made(optimizer: tt.Optimizer | None = None, nets: Any = None, **terms: tt.Term) -> tt.Step:
    return tt.step(nets or NETS, optimizer or tt.optim.sgd(0.1), terms or {"task": TASK}, trainable=("student",))


def game() -> tt.Step:
    less = tt.term(lambda z: -tt.losses.entropy(z), "student(target)", weight=0.1)
    head = tt.step(NETS, tt.optim.sgd(0.1), {"task": TASK, "less": less}, trainable={"student": "fc.*"})
    body = tt.step(NETS, tt.optim.adam(0.01), {"task": TASK, "kd": KD}, trainable={"student": "hidden.*"})
    return tt.alternate(head=head, body=body)


def averaged() -> tt.Step:
    follow = tt.term(F.mse_loss, "student(target)", "mean(target)", weight=0.5)
    return tt.step(
        CONVS, tt.optim.adamw(1e-2), {"task": TASK, "follow": follow},
        trainable=("student",), ema={"mean": tt.ema("student", 0.9)},
    )  # fmt: skip


LORA = {**NETS, "student": tt.reparam(tt.functional(mlp(1)), tt.adapters.lora(".*weight", rank=2))}
TEMPERATURES = {"kd.temperature": [1.0, 2.0, 4.0]}
OWN: dict[str, tuple[Callable[[], tt.Step], Any]] = {
    "everything": (lambda: made(tt.optim.adamw(1e-2), CONVS, task=TASK, kd=KD, mmd=MMD, dann=DANN), IMAGES),
    "accumulate": (
        lambda: tt.replace(made(tt.optim.sgd(0.1, momentum=0.9), task=TASK, kd=KD), accumulate=2),
        VECTORS,
    ),
    "alternate": (game, VECTORS),
    "ema": (averaged, IMAGES),
    "ensemble": (lambda: tt.ensemble(made(tt.optim.adamw(1e-2), task=TASK, kd=KD), 2), VECTORS),
    "sweep": (lambda: tt.sweep(made(task=TASK, kd=KD), TEMPERATURES), VECTORS),
    "compiled": (lambda: tt.compile(made(tt.optim.lamb(0.01), LORA, task=TASK, kd=KD), backend="aot_eager"), VECTORS),
}


@pytest.mark.parametrize("name", OWN)
def test_steps_of_the_library_obey(name: str) -> None:
    make, batch = OWN[name]
    report = check_step(make(), batch, name=name)
    assert report.taken.endswith("; in float64")
    assert sum(o.status == "obeyed" for o in report.outcomes) >= 15
    assert "every-parameter-learns" in report.seems


def test_stacked_batches_and_a_sweep_of_an_ensemble_obey() -> None:
    both = tree.map(lambda x: torch.stack([x, x.flip(0)]), VECTORS)
    stacked = step_trial(tt.ensemble(made(task=TASK, kd=KD), 2, batches="stacked"), both)
    deep = step_trial(tt.sweep(tt.ensemble(made(task=TASK, kd=KD), 2), TEMPERATURES), VECTORS)
    for trial in (stacked, deep):
        names = [one.name for one in trial.asked if one.name not in ("one-graph",)]
        assert judge(trial, only=names).failed == ()


def test_a_net_that_knows_one_precision_only_is_judged_in_it() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.float())

    low = tree.map(lambda x: x.float() if x.is_floating_point() else x, VECTORS)
    nets = {"student": tt.functional(Single()), "teacher": tt.functional(mlp(2).float())}
    trial = step_trial(made(nets=nets), low)
    assert "the precision given" in trial.taken
    names = [one.name for one in trial.asked if one.name not in ("one-graph",)]
    assert judge(trial, only=names).failed == ()


# -- steps that break a law


def wrapped(step: tt.Step, change: Callable[..., Any]) -> tt.Step:
    """A step whose (old state, batch, new state, logs) are changed on the way out."""

    def update(state: tt.State, batch: Any) -> Any:
        return change(state, batch, *step.update(state, batch))

    return step._replace(update=update)


def counting() -> tt.Term:
    calls: list[int] = []

    def loss(z: Tensor) -> Tensor:
        calls.append(1)
        return z.square().mean() * (1 + 1e-3 * len(calls))

    return tt.term(loss, "student(source)")


def branching(z: Tensor) -> Tensor:
    return z.square().mean() * (2.0 if z.sum().item() > 0 else 1.0)


def of_six(z: Tensor) -> Tensor:
    return z.reshape(6, -1).square().mean()


def noisy(z: Tensor) -> Tensor:
    return (z + 0.1 * torch.randn_like(z)).square().mean()


class Careless(torch.autograd.Function):
    """A loss whose backward forgets what comes from behind."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.square().mean()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x / x.numel()


class Restless(nn.Module):
    """A net that is random in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.randn(3, dtype=x.dtype)


def drawing() -> tt.Step:
    step = made()

    def init(batch: Any, seed: int = 0) -> tt.State:
        state = step.init(batch, seed)
        return state._replace(trainable=tree.map(lambda x: x + torch.randn_like(x), state.trainable))

    return step._replace(init=init)


def sharing() -> tt.Step:
    step = made()

    def init(batch: Any, seed: int = 0) -> tt.State:
        state = step.init(batch, seed)
        return state._replace(hyper={**state.hyper, "optim.lr": state.hyper["task.weight"]})

    return step._replace(init=init)


def kept_outside() -> tt.Step:
    """What a step needs is drawn anew by each init."""
    step, noise = made(), [torch.zeros(())]

    def init(batch: Any, seed: int = 0) -> tt.State:
        noise[0] = noise[0] + 0.5
        return step.init(batch, seed)

    def change(old: tt.State, batch: Any, new: tt.State, logs: Any) -> Any:
        return new._replace(trainable=tree.map(lambda x: x * (1 + noise[0]), new.trainable)), logs

    return wrapped(step, change)._replace(init=init)


def louder(old: tt.State, batch: Any, new: tt.State, logs: Any) -> Any:
    return new, {**logs, "loss": 2 * logs["loss"]}


def thawed(old: tt.State, batch: Any, new: tt.State, logs: Any) -> Any:
    return new._replace(frozen=tree.map(lambda x: 0.99 * x, new.frozen)), logs


def uncounted(old: tt.State, batch: Any, new: tt.State, logs: Any) -> Any:
    return new._replace(step=old.step), logs


def logged_rows(old: tt.State, batch: Any, new: tt.State, logs: Any) -> Any:
    return new, {**logs, "rows": batch["source"]["x"].sum(1)}


def too_far(old: tt.State, batch: Any, new: tt.State, logs: Any) -> Any:
    moved = tree.map(lambda a, b: a + 2 * (b - a), old.trainable, new.trainable)
    return new._replace(trainable=moved), logs


def unguarded(old: tt.State, batch: Any, new: tt.State, logs: Any) -> Any:
    return new._replace(step=old.step + 1), logs


def exchanged(old: tt.State, batch: Any, new: tt.State, logs: Any) -> Any:
    """The decay and its rest."""
    ema = {name: new.trainable["student"][name] * 0.9 + 0.1 * x for name, x in old.ema["mean"].items()}
    return new._replace(ema={"mean": ema}), logs


def in_place(old: tt.State, batch: Any, new: tt.State, logs: Any) -> Any:
    old.trainable["student"]["fc.bias"].add_(1.0)
    return new, logs


def on_the_batch(old: tt.State, batch: Any, new: tt.State, logs: Any) -> Any:
    batch["source"]["x"].clamp_(-0.1, 0.1)
    return new, logs


def remembering() -> tt.Optimizer:
    """It hands the old parameters on as they are, in their own storage."""

    def update(grads: Any, state: Any, params: Any, hyper: Any) -> Any:
        pull = tree.map(lambda g, p, q: -0.1 * (g + 0.1 * (p - q)), grads, params, state["before"])
        return pull, {"before": params}

    return tt.Optimizer(lambda params: {"before": tree.map(torch.zeros_like, params)}, update, {})


def turning_wide() -> tt.Optimizer:
    def update(grads: Any, state: Any, params: Any, hyper: Any) -> Any:
        return tree.map(lambda g: -0.1 * g, grads), {"count": state["count"] + 1.0}

    return tt.Optimizer(lambda params: {"count": torch.zeros((), dtype=torch.int64)}, update, {})


def lame() -> tt.Step:
    """The second net that trains gets no update."""

    def update(grads: Any, state: Any, params: Any, hyper: Any) -> Any:
        return {net: tree.map(lambda g, n=net: -0.1 * g * (n != "teacher"), g) for net, g in grads.items()}, state

    return tt.step(
        NETS, tt.Optimizer(lambda p: {}, update, {}), {"task": TASK, "fit": tt.term(F.mse_loss, *PAIR)},
        trainable=("student", "teacher"),
    )  # fmt: skip


PAIR = ("student(source)", "teacher(source)")


class Breaker(NamedTuple):
    """A step that breaks a law, and what is said of it."""

    law: str
    step: Callable[[], tt.Step]
    says: str


def square(fn: Callable[[Tensor], Tensor], **more: Any) -> tt.Term:
    return tt.term(fn, "student(source)", **more)


BREAKERS = {
    "drawing": Breaker("first-state", drawing, "two first states of one seed"),
    "sharing": Breaker("first-state", sharing, "of the first state share their storage"),
    "counting": Breaker("deterministic", lambda: made(t=counting()), "of two like runs"),
    "noisy": Breaker("deterministic", lambda: made(t=square(noisy)), "draws from the global generator"),
    "wide": Breaker("structure", lambda: made(turning_wide()), "after step 1 the state has opt.count"),
    "log": Breaker("structure", lambda: wrapped(made(), logged_rows), "the log rows has shape (6,)"),
    "in-place": Breaker("inputs-untouched", lambda: wrapped(made(), in_place), "the state that was given"),
    "batch": Breaker("inputs-untouched", lambda: wrapped(made(), on_the_batch), "the batch that was given"),
    "thawed": Breaker("frozen-stays", lambda: wrapped(made(), thawed), "after step 1 what was frozen"),
    "uncounted": Breaker("frozen-stays", lambda: wrapped(made(), uncounted), "after step 1 the count"),
    "infinite": Breaker(
        "is-finite", lambda: made(t=square(lambda z: (z - z).sum().log())), "at step 1 the log loss is -inf"
    ),
    "lame": Breaker("every-net-learns", lame, "no parameter of 'teacher' has moved"),
    "outside": Breaker("saved-and-loaded", kept_outside, "the step after loading, and without"),
    "of-six": Breaker("other-numbers-of-rows", lambda: made(t=square(of_six)), "with one row less in each domain"),
    "louder": Breaker("loss-is-the-sum", lambda: wrapped(made(task=TASK, kd=KD), louder), "at step 1 loss and the sum"),
    "too-far": Breaker("follows-the-gradient", lambda: wrapped(made(), too_far), "and by the loss's gradient"),
    "careless": Breaker(
        "no-weight-no-term",
        lambda: made(task=TASK, t=square(Careless.apply)),  # type: ignore[arg-type]
        "with 't' at weight 0 and without it",
    ),
    "infinite-at-0": Breaker(
        "no-weight-no-term",
        lambda: made(task=TASK, t=square(lambda z: (z - z).sum().log(), weight=0.0)),
        "with 't' at weight 0 and without it",
    ),
    "unguarded": Breaker("guarded", lambda: wrapped(made(), unguarded), "on a batch with NaN, and before it"),
    "exchanged": Breaker("averages-follow", lambda: wrapped(averaged_vectors(), exchanged), "after step 1 'mean'"),
    "restless": Breaker(
        "prediction-changes-nothing",
        lambda: made(nets={**NETS, "student": tt.functional(Restless())}),
        "two predictions",
    ),
    "no-mean": Breaker(
        "micro-batches", lambda: made(t=square(lambda z: z.square().sum(), coupled=False)), "in two micro-batches"
    ),
    "no-mean-of-ranks": Breaker(
        "sharded", lambda: made(t=square(lambda z: z.square().sum(), coupled=False)), "on rank 0 of 2 and alone"
    ),
    "branching": Breaker("one-graph", lambda: made(t=square(branching)), "the step is not one graph"),
    "wide-graph": Breaker("one-graph", lambda: made(turning_wide()), "3 steps took 2 graphs"),
    "remembering": Breaker("donated", lambda: tt.replace(made(remembering()), guard=False), "donated and not"),
    "branching-members": Breaker("members", lambda: made(t=square(branching)), "a step of an ensemble raised"),
}


def averaged_vectors() -> tt.Step:
    return tt.step(
        NETS, tt.optim.sgd(0.1), {"task": TASK}, trainable=("student",), ema={"mean": tt.ema("student", 0.9)}
    )


@pytest.mark.parametrize("name", BREAKERS)
def test_a_law_is_broken_and_said_to_be(name: str) -> None:
    law, make, says = BREAKERS[name]
    report = judge(step_trial(make(), VECTORS, name=name), only=[law])
    assert [o.law.name for o in report.failed] == [law]
    assert says in str(report)
    assert "likely cause: " in str(report)


class Unused(nn.Module):
    """A net with a layer that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.spare = nn.Linear(5, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def detaching(z: Tensor) -> Tensor:
    return (z * z.detach()).square().mean()


LOOKED_AT: dict[str, Callable[[], tt.Step]] = {
    "every-parameter-learns": lambda: made(nets={**NETS, "student": tt.functional(Unused().double())}),
    "rows-may-change-places": lambda: made(
        t=tt.term(lambda z: (z * torch.linspace(0, 1, 6).to(z)[:, None]).square().mean(), "student(source)")
    ),
    "descends": lambda: made(tt.optim.sgd(-0.1)),
    "meta-gradient": lambda: made(t=square(detaching)),
}


@pytest.mark.parametrize("law", LOOKED_AT)
def test_what_is_looked_at_may_differ_without_failing(law: str) -> None:
    report = judge(step_trial(LOOKED_AT[law](), VECTORS), only=[law])
    assert [o.status for o in report.outcomes] == ["differs"]


def test_every_law_has_a_step_that_breaks_it_and_a_cause() -> None:
    assert {one.name for one in LAWS} == {breaker.law for breaker in BREAKERS.values()} | set(LOOKED_AT)
    assert all(one.says.endswith(".") and one.cause for one in LAWS)


def test_laws_are_asked_where_they_say_something() -> None:
    def asked(step: tt.Step, batch: Any = VECTORS) -> set[str]:
        return {one.name for one in step_trial(step, batch).asked}

    assert "averages-follow" not in asked(made())
    assert "averages-follow" in asked(averaged_vectors())
    assert "no-weight-no-term" not in asked(made())
    assert "follows-the-gradient" not in asked(game())
    assert "guarded" not in asked(tt.replace(made(), guard=False))
    assert "micro-batches" not in asked(made(task=TASK, mmd=MMD))
    few = {domain: {f: x[:2] for f, x in fields.items()} for domain, fields in VECTORS.items()}
    assert "other-numbers-of-rows" not in asked(made(), few)


def test_a_term_of_weight_0_that_ran_a_forward_is_not_compared_where_that_kept_count() -> None:
    """Without the term its forward is not run, and running statistics differ, rightly."""
    extra = tt.term(tt.losses.entropy, "student(target)", weight=0.1)
    step = averaged()
    with_it = tt.replace(step, extra=extra, follow=None)
    assert judge(step_trial(with_it, IMAGES), only=["no-weight-no-term"]).failed == ()


def test_an_excuse_is_taken_and_a_failure_is_raised() -> None:
    reason = {"guarded": "the count goes up whatever happens"}
    step = wrapped(made(), unguarded)
    assert [
        o.status for o in judge(step_trial(step, VECTORS, expected_failed_checks=reason), only=reason).outcomes
    ] == ["excused"]
    with pytest.raises(LawBroken, match=r"step obeys .* laws and fails"):
        check_step(wrapped(made(), louder), VECTORS)


def test_what_cannot_be_tried_is_refused() -> None:
    with pytest.raises(tt.TransferError, match="expected a Step, got Linear"):
        step_trial(nn.Linear(2, 2), VECTORS)  # type: ignore[arg-type]
    with pytest.raises(tt.TransferError, match="late: the batch has no domain 'source'"):
        step_trial(made(), {"target": VECTORS["target"]}, name="late")
    with pytest.raises(tt.TransferError, match="steps must be 2 at least, got 1"):
        step_trial(made(), VECTORS, steps=1)
