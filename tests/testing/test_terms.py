"""The laws of terms: those of this library obey them, and for each law there is one that breaks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ttransfer as tt
from ttransfer.testing import Tags
from ttransfer.testing._law import LawBroken, judge
from ttransfer.testing._terms import check_term, term_trial
from ttransfer.testing.laws._term import LAWS


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 1, 2, 1])
SOURCE, TARGET = some(5, 3), some(4, 3, seed=1)
BANDWIDTH = {"gradcheck": "the bandwidth, the mean distance in the batch, is held constant"}


class Own(NamedTuple):
    """A term that should obey, with what its paths give."""

    term: tt.Term
    readings: Any
    expected: Mapping[str, str] = {}
    tags: Tags = Tags()
    reference: Callable[..., Any] | None = None


def centred(x: Tensor, *, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """A distance to a running centre."""
    centre = 0.9 * state["centre"] + 0.1 * x.detach().mean(0)
    return (x - state["centre"]).square().mean(), {"centre": centre}


def centre_of(generator: torch.Generator, x: Tensor) -> dict[str, Tensor]:
    return {"centre": torch.zeros(x.shape[1:], dtype=x.dtype)}


def several(features: list[Tensor], others: list[Tensor]) -> Tensor:
    return torch.stack([F.mse_loss(a, b.detach()) for a, b in zip(features, others, strict=True)]).sum()


def slow_kd(student: Tensor, teacher: Tensor) -> Tensor:
    p, q = (x.div(2).softmax(1) for x in (teacher.detach(), student))
    return 4 * (p * (p / q).log()).sum(1).mean()


STUDENT, TEACHER = PAIR = "student(source)", "teacher(source)"
LOGITS = (some(4, 3), some(4, 3, seed=1))
DOMAINS = ("student(source).fc:in", "student(target).fc:in")
SHARED = tt.shared("project", tt.adapters.linear(2))
OWN = {
    "kd": Own(tt.term(tt.losses.kd, *PAIR, temperature=2.0), LOGITS, {}, Tags(), slow_kd),
    "entropy": Own(tt.term(tt.losses.entropy, STUDENT), (some(4, 3),)),
    "cross-entropy": Own(
        tt.term(F.cross_entropy, STUDENT, "source.y", label_smoothing=0.1),
        (some(4, 3), LABELS), {}, Tags(ignore_index=-100),
    ),
    "mmd": Own(tt.term(tt.align.mmd, *DOMAINS), (SOURCE, TARGET), BANDWIDTH),
    "mmd-unbiased": Own(tt.term(tt.align.mmd_unbiased, *DOMAINS), (SOURCE, TARGET)),
    "mmd-linear": Own(tt.term(tt.align.mmd_linear, *DOMAINS), (SOURCE, TARGET)),
    "coral": Own(tt.term(tt.align.coral, *DOMAINS, weight=0.5), (SOURCE, TARGET)),
    "adversarial": Own(tt.term(tt.align.domain_adversarial, *DOMAINS), (some(5, 1), some(4, 1))),
    "dann": Own(
        tt.terms.dann(*DOMAINS, critic=tt.adapters.mlp(4), scale=tt.schedules.ramp(100), weight=0.1), (SOURCE, TARGET),
        {"gradcheck": "features get the reversed gradient, which is the method"},
    ),
    "hint": Own(
        tt.term(F.mse_loss, tt.read(STUDENT) | tt.adapters.linear(4), tt.read(TEACHER) | tt.detach),
        (some(4, 3), some(4, 4)),
    ),
    "shared": Own(tt.term(tt.align.coral, *(tt.read(path) | SHARED for path in DOMAINS)), (SOURCE, TARGET)),
    "centred": Own(tt.term(centred, STUDENT, state=centre_of), (some(4, 3),)),
    "lists": Own(
        tt.term(several, ["student(a)", "student(b)"], [tt.read(f"teacher({d})") | tt.detach for d in "ab"]),
        ([some(4, 3), some(4, 2)], [some(4, 3, seed=1), some(4, 2, seed=1)]),
    ),
    "fixed-weight": Own(tt.term(tt.losses.kd, *PAIR, weight=tt.fixed(0.5)), LOGITS),
}  # fmt: skip


# Of these the tests of losses say the rest.
BARE = ("entropy", "mmd-unbiased", "mmd-linear", "coral", "adversarial")


@pytest.mark.parametrize("name", BARE)
def test_losses_of_the_library_obey_as_terms(name: str) -> None:
    report = judge(term_trial(OWN[name].term, OWN[name].readings, name=name), only=[one.name for one in LAWS])
    assert report.failed == ()
    assert sum(o.status == "obeyed" for o in report.outcomes) >= 9


@pytest.mark.parametrize("name", [name for name in OWN if name not in BARE])
def test_terms_of_the_library_obey(name: str) -> None:
    own = OWN[name]
    report = check_term(
        own.term,
        own.readings,
        tags=own.tags,
        reference=own.reference,
        expected_failed_checks=own.expected,
        name=name.replace("-", "_"),
        examples=10,
    )
    assert sum(o.status == "obeyed" for o in report.outcomes) >= 25


def pulled(params: Mapping[str, Tensor], z: Tensor) -> Tensor:
    return sum((x.square().sum() for x in params.values()), z.square().mean())


def consistent(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return (net(x + 0.1) - net(x)).square().mean()


def test_parameters_and_functions_may_be_read() -> None:
    penalty = tt.term(pulled, "student:params", STUDENT)
    weights = {"fc.weight": some(2, 3), "fc.bias": some(2)}
    smooth = tt.term(consistent, "student:fn", "source.x")
    for term, readings in ((penalty, (weights, some(4, 3))), (smooth, (torch.tanh, some(4, 3)))):
        trial = term_trial(term, readings, examples=5)
        names = [one.name for one in trial.asked if "graph" not in one.name and "compiled" not in one.name]
        assert judge(trial, only=names).failed == ()


# -- terms that break a law


def weighted(z: Tensor, *, params: Mapping[str, Tensor]) -> Tensor:
    return (z * params["w"]).square().mean()


def with_params(fn: Callable[..., Any], start: Callable[..., Any]) -> tt.Term:
    return tt.term(fn, STUDENT, params=start)


def ones_for(generator: torch.Generator, z: Tensor) -> dict[str, Tensor]:
    return {"w": torch.ones(z.shape[1], dtype=z.dtype)}


def drawn_by_time() -> tt.Term:
    calls: list[int] = []

    def start(generator: torch.Generator, z: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        return {"w": torch.randn(z.shape[1], generator=torch.Generator().manual_seed(len(calls)), dtype=z.dtype)}

    return with_params(weighted, start)


def handed_out() -> tt.Term:
    kept: dict[torch.dtype, Tensor] = {}

    def start(generator: torch.Generator, z: Tensor) -> dict[str, Tensor]:
        return {"w": kept.setdefault(z.dtype, torch.ones(z.shape[1], dtype=z.dtype))}

    return with_params(weighted, start)


def unused(z: Tensor, *, params: Mapping[str, Tensor]) -> Tensor:
    return z.square().mean()


def half_detached(z: Tensor, *, params: Mapping[str, Tensor]) -> Tensor:
    return (z * params["w"] * params["w"].detach()).square().mean()


def in_place(x: Tensor, *, state: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
    state["count"].add_(1)
    return x.square().mean(), state


def zero(generator: torch.Generator, x: Tensor) -> dict[str, Tensor]:
    return {"count": torch.zeros((), dtype=torch.int64)}


def forgotten(x: Tensor, *, state: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
    return (x - state["centre"]).square().mean(), state


def for_the_logs(x: Tensor, *, state: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
    return x.square().mean(), {"centre": x.detach().mean(0)}


def exploding(x: Tensor, *, state: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
    return (x - state["centre"]).square().mean(), {"centre": x.detach().mean(0).exp().exp().exp().exp()}


def detached_number(x: Tensor, *, margin: float | Tensor = 1.0) -> Tensor:
    return (x * torch.as_tensor(margin).detach()).square().mean()


def idle_number(x: Tensor, *, margin: float | Tensor = 1.0) -> Tensor:
    return x.square().mean()


def counting() -> tt.Term:
    calls: list[int] = []

    def loss(x: Tensor) -> Tensor:
        calls.append(1)
        return x.square().mean() * (1 + 1e-3 * len(calls))

    return tt.term(loss, STUDENT)


def branching(x: Tensor) -> Tensor:
    return x.square().mean() * (2.0 if x.sum().item() > 0 else 1.0)


def branching_on(x: Tensor, *, state: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
    return branching(x), state


class Careless(torch.autograd.Function):
    """A reversal that forgets what comes from behind."""

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


def careless(x: Tensor) -> Tensor:
    value: Any = Careless.apply(x)
    return value


def of_four(x: Tensor) -> Tensor:
    return x.reshape(4, -1).square().mean()


class Breaker(NamedTuple):
    """A term that breaks a law, and what is said of it."""

    law: str
    term: Callable[[], tt.Term]
    says: str


def bare(fn: Callable[..., Tensor], **more: Any) -> Callable[[], tt.Term]:
    return lambda: tt.term(fn, STUDENT, **more)


def kept(fn: Callable[..., Any], start: Callable[..., Any] = centre_of) -> Callable[[], tt.Term]:
    return lambda: tt.term(fn, STUDENT, state=start)


BREAKERS = {
    "by-time": Breaker("initial-parameters", drawn_by_time, "two starts from one seed"),
    "handed-out": Breaker("initial-parameters", handed_out, "two starts share the storage of parameters.w"),
    "unused": Breaker("own-parameters-learn", lambda: with_params(unused, ones_for), "no gradient for any input: w"),
    "half-detached": Breaker("own-gradients", lambda: with_params(half_detached, ones_for), "along a direction of w"),
    "in-place": Breaker("own-untouched", kept(in_place, zero), "changed its state: count"),
    "in-place-step": Breaker("value-in-a-step", kept(in_place, zero), "a step raised TransferError: term 'term'"),
    "forgotten": Breaker("state-moves", kept(forgotten), "the state stays the same whatever is read"),
    "exploding": Breaker("state-moves", kept(exploding), "the state centre is not finite"),
    "detached-number": Breaker(
        "numbers-are-differentiable", bare(detached_number, margin=0.5), "with term.margin the value changes by"
    ),
    "idle-number": Breaker("every-number-counts", bare(idle_number, margin=0.5), "the same whatever term.margin is"),
    "counting": Breaker("value-in-a-step", counting, "at step 1 the log and the value"),
    "counting-step": Breaker("step-deterministic", counting, "of two like runs"),
    "branching": Breaker("step-one-graph", kept(branching_on), "the step is not one graph"),
    "branching-members": Breaker("step-members", bare(branching), "a step of an ensemble raised"),
    "sum": Breaker("step-micro-batches", bare(lambda x: x.square().sum(), coupled=False), "in two micro-batches"),
    "careless": Breaker("step-no-weight-no-term", bare(careless), "with 'term' at weight 0 and without it"),
    "counting-gradient": Breaker("step-follows-the-gradient", counting, "by the loss's gradient"),
    "infinite": Breaker("step-is-finite", bare(lambda x: (x - x).sum().log()), "the log loss is -inf"),
    "of-four": Breaker("step-other-numbers-of-rows", bare(of_four), "with one row less in each domain"),
    # Laws of losses are asked of a term too.
    "scale": Breaker("gradient", bare(lambda x: x.detach().square().mean()), "gets no gradient for any input"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKERS)
def test_a_law_is_broken_and_said_to_be(name: str) -> None:
    law, make, says = BREAKERS[name]
    report = judge(term_trial(make(), (some(4, 3),), name=name.replace("-", "_")), only=[law])
    assert [o.law.name for o in report.failed] == [law]
    assert says in str(report)
    assert "likely cause: " in str(report)


LOOKED_AT = {
    "seed-decides": with_params(weighted, ones_for),
    "state-counts": tt.term(for_the_logs, STUDENT, state=centre_of),
}


@pytest.mark.parametrize("law", LOOKED_AT)
def test_what_is_looked_at_may_differ_without_failing(law: str) -> None:
    report = judge(term_trial(LOOKED_AT[law], (some(4, 3),)), only=[law])
    assert [o.status for o in report.outcomes] == ["differs"]


def test_every_law_of_terms_has_one_that_breaks_it_and_a_cause() -> None:
    tried = {breaker.law for breaker in BREAKERS.values()} | set(LOOKED_AT)
    own = {one.name for one in LAWS if not one.name.startswith("step-")}
    assert own <= tried
    # What a step is made to do around the term is broken in the tests of steps.
    around = {"structure", "inputs-untouched", "saved-and-loaded", "loss-is-the-sum", "guarded"}
    assert {one.name for one in LAWS} - tried == {f"step-{name}" for name in around}
    assert all(one.says.endswith(".") and one.cause for one in LAWS)


def test_a_term_is_taken_by_its_losss_names_and_its_pipes() -> None:
    trial = term_trial(OWN["hint"].term, OWN["hint"].readings)
    assert trial.subject.loss.tags.detaches == ("target",)
    assert trial.taken.endswith("with numbers weight; parameters reads.0.0.weight, reads.0.0.bias")
    assert term_trial(OWN["lists"].term, OWN["lists"].readings).subject.loss.tags.detaches == ("others_0", "others_1")
    assert term_trial(OWN["kd"].term, OWN["kd"].readings).subject.loss.tags.detaches == ("teacher",)


def test_schedules_are_looked_at_some_steps_on() -> None:
    trial = term_trial(OWN["dann"].term, OWN["dann"].readings)
    ramp = tt.schedules.ramp(100)
    assert trial.subject.all_numbers["term.scale"].item() == ramp(10).item() > 0


def test_known_values_are_asked_of_the_term_as_a_loss() -> None:
    limits = {"equal logits": lambda loss: (loss(SOURCE, SOURCE), 0.0), "one": lambda loss: (loss(SOURCE, SOURCE), 1.0)}
    trial = term_trial(OWN["kd"].term, (SOURCE, SOURCE), limits=limits)
    report = judge(trial, only=["limit-equal-logits", "limit-one"])
    assert [o.law.name for o in report.failed] == ["limit-one"]


def test_a_wrong_term_is_found_by_its_reference() -> None:
    term = tt.term(lambda student, teacher: slow_kd(student, teacher) / 4, STUDENT, TEACHER)
    with pytest.raises(LawBroken, match="the loss and its reference are"):
        check_term(term, OWN["kd"].readings, reference=slow_kd, name="no_square", examples=5)


def test_what_cannot_be_tried_is_refused() -> None:
    with pytest.raises(tt.TransferError, match="expected a Term, got function"):
        term_trial(F.mse_loss, (some(4, 3), some(4, 3)))  # type: ignore[arg-type]
    kd = OWN["kd"].term
    with pytest.raises(tt.TransferError, match="kd: it reads 2 things, the example has 1"):
        term_trial(kd, (some(4, 3),))
    with pytest.raises(tt.TransferError, match=r"kd: 'student\(source\)' must have one row for each example"):
        term_trial(kd, (torch.tensor(1.0), some(4, 3)))
    with pytest.raises(tt.TransferError, match="a reading is a tensor, a dict of parameters or a function, got int"):
        term_trial(kd, (3, some(4, 3)))
    with pytest.raises(tt.TransferError, match=r"kd: .*\(4, 3\) float32.*\(4, 2\) float32"):
        term_trial(kd, (some(4, 3), some(4, 2)))
