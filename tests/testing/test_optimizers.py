"""The laws of optimizers: those of this library obey them, and for each law there is one that breaks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torchopt
from torch import Tensor

import ttransfer as tt
from ttransfer.core import _tree as tree
from ttransfer.testing._law import LawBroken, Trial, judge
from ttransfer.testing._optimizers import LAWS, check_optimizer, optimizer_trial
from ttransfer.testing.laws._optimizer_tools import OptimizerSubject

Hyper = Mapping[str, Tensor]
optim = tt.optim


# -- the library's own


class Clipped:
    """One of torch's optimizers behind torch's clipping."""

    def __init__(self, params: list[Tensor], optimizer: torch.optim.Optimizer, norm: float) -> None:
        self.params, self.optimizer, self.norm = params, optimizer, norm

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.params, self.norm)
        self.optimizer.step()


class Scheduled:
    """One of torch's optimizers with a schedule."""

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> None:
        self.optimizer, self.schedule = optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def step(self) -> None:
        self.optimizer.step()
        self.schedule.step()


def slow_lamb(params: list[Tensor]) -> Any:
    """LAMB with torch's Adam for its direction."""
    rate, decay = 0.1, 0.1
    shadow = [torch.zeros_like(p, requires_grad=True) for p in params]
    adam = torch.optim.Adam(shadow, 1.0, eps=1e-3)

    class Slow:
        def step(self) -> None:
            for s, p in zip(shadow, params, strict=True):
                s.data.zero_()
                s.grad = p.grad
            adam.step()
            for s, p in zip(shadow, params, strict=True):
                u = -s.detach() + decay * p.detach()
                sizes = p.detach().norm(), u.norm()
                ratio = sizes[0] / sizes[1] if min(sizes) > 0 else 1.0
                p.data.sub_(rate * ratio * u)

    return Slow()


def slow_lars(params: list[Tensor]) -> Any:
    """LARS, leaf by leaf."""
    rate, momentum, decay, trust = 0.1, 0.9, 0.1, 0.1
    buffers = [torch.zeros_like(p) for p in params]

    class Slow:
        def step(self) -> None:
            for v, p in zip(buffers, params, strict=True):
                assert p.grad is not None
                size, below = p.detach().norm(), p.grad.norm() + decay * p.detach().norm()
                local = trust * size / below if size > 0 and below > 0 else 1.0
                v.mul_(momentum).add_(rate * local * (p.grad + decay * p.detach()))
                p.data.sub_(v)

    return Slow()


def grouped(params: list[Tensor]) -> Any:
    """AdamW for the first two parameters, which are called fc, and momentum for the third."""
    parts = torch.optim.AdamW(params[:2], 0.1), torch.optim.SGD(params[2:], 0.1, momentum=0.9)

    class Both:
        def step(self) -> None:
            for part in parts:
                part.step()

    return Both()


def decayed(params: list[Tensor]) -> torch.optim.Optimizer:
    """Adam whose first and third parameters, the weights, have a penalty."""
    groups = [{"params": [params[0], params[2]], "weight_decay": 0.3}, {"params": [params[1]]}]
    return torch.optim.Adam(groups, 0.1)


class Own(NamedTuple):
    """An optimizer of this library with its reference."""

    optimizer: tt.Optimizer
    reference: Callable[[list[Tensor]], Any]
    expected: Mapping[str, str] = {}


T = torch.optim
UNTRACED = {"one-graph": "torch below 2.15 does not trace optree, on which TorchOpt stands"}
OPTREE = UNTRACED if torch.__version__ < (2, 15) else {}
OWN = {
    "sgd": Own(optim.sgd(0.1), lambda p: T.SGD(p, 0.1)),
    "decay": Own(optim.sgd(0.1, weight_decay=0.1), lambda p: T.SGD(p, 0.1, weight_decay=0.1)),
    "momentum": Own(
        optim.sgd(0.1, momentum=0.9, dampening=0.2, weight_decay=0.1),
        lambda p: T.SGD(p, 0.1, momentum=0.9, dampening=0.2, weight_decay=0.1),
    ),
    "nesterov": Own(optim.sgd(0.1, momentum=0.9, nesterov=True), lambda p: T.SGD(p, 0.1, momentum=0.9, nesterov=True)),
    "adam": Own(optim.adam(1e-3), lambda p: T.Adam(p, 1e-3)),
    "adamw": Own(optim.adamw(1e-2, weight_decay=0.1), lambda p: T.AdamW(p, 1e-2, weight_decay=0.1)),
    "lamb": Own(optim.lamb(0.1, eps=1e-3, weight_decay=0.1), slow_lamb),
    "lars": Own(optim.lars(0.1, weight_decay=0.1, trust_coefficient=0.1), slow_lars),
    "clip": Own(
        optim.chain(optim.clip_by_norm(0.7), optim.sgd(0.1, momentum=0.9)),
        lambda p: Clipped(p, T.SGD(p, 0.1, momentum=0.9), 0.7),
    ),
    "chain": Own(
        optim.chain(clip=optim.clip_by_norm(0.7), decay=optim.add_weight_decay(0.1), adam=optim.adam(0.1)),
        lambda p: Clipped(p, T.Adam(p, 0.1, weight_decay=0.1), 0.7),
    ),
    "partition": Own(
        optim.partition(
            {"head": optim.adamw(0.1), "body": optim.sgd(0.1, momentum=0.9)}, {"head": ".*fc.*", "body": ".*"}
        ),
        grouped,
    ),
    "masked": Own(optim.chain(optim.masked(optim.add_weight_decay(0.3), ".*weight"), optim.adam(0.1)), decayed),
    "scheduled": Own(
        optim.adam(tt.schedules.linear(0.1, 0.0, 10)),
        lambda p: Scheduled(T.Adam(p, 0.1), lambda t: 1 - t / 10),
    ),
    "torchopt_sgd": Own(
        optim.from_torchopt(torchopt.sgd(0.1, momentum=0.9, nesterov=True)),
        lambda p: T.SGD(p, 0.1, momentum=0.9, nesterov=True),
        OPTREE,
    ),
    "torchopt_adam": Own(
        optim.from_torchopt(torchopt.adam(1e-3)),
        lambda p: T.Adam(p, 1e-3),
        {"reference": "TorchOpt takes the bias corrections in float32, which costs seven of fifteen digits", **OPTREE},
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_the_librarys_own_obey(name: str) -> None:
    own = OWN[name]
    report = check_optimizer(own.optimizer, reference=own.reference, expected_failed_checks=own.expected, name=name)
    assert sum(o.status == "obeyed" for o in report.outcomes) >= 16 - len(own.expected)
    assert "scalar-parameters" in report.seems


LOOKED_AT = {
    "sgd": "each-parameter-by-itself each-coordinate-by-itself averages-are-corrected plain-step",
    "adam": "each-parameter-by-itself each-coordinate-by-itself",
    "lamb": "each-parameter-by-itself relative-to-the-weights",
    "lars": "each-parameter-by-itself relative-to-the-weights scale-free",
    "clip": "",
}


@pytest.mark.parametrize("name", LOOKED_AT)
def test_what_is_not_claimed_is_reported(name: str) -> None:
    trial = optimizer_trial(OWN[name].optimizer)
    probes = [one.name for one in trial.asked if one.claim(trial.subject) is None]
    common = {"scalar-parameters", "wide-state", "finite-derivatives-at-rest"}
    assert set(judge(trial, only=probes).seems) == set(LOOKED_AT[name].split()) | common


# -- those that break a law


def each(rule: Callable[..., Tensor], *trees: Any) -> Any:
    return tree.map(rule, *trees)


def stateless(rule: Callable[[Tensor, Tensor, Hyper], Tensor], **hyper: float) -> tt.Optimizer:
    """(gradient, parameter, numbers) -> update."""
    return tt.Optimizer(lambda p: {}, lambda g, s, p, h: (each(lambda g, p: rule(g, p, h), g, p), s), hyper)


def buffered(
    rule: Callable[[Tensor, Tensor, Tensor, Hyper], tuple[Tensor, Tensor]],
    start: Callable[[Tensor], Tensor] = torch.zeros_like,
    **hyper: float,
) -> tt.Optimizer:
    """(gradient, buffer, count, numbers) -> (update, buffer)."""

    def init(params: Any) -> Any:
        return {"count": tree.leaves(params)[0].new_zeros((), dtype=torch.int64), "m": each(start, params)}

    def update(grads: Any, state: Any, params: Any, h: Hyper) -> tuple[Any, Any]:
        pairs = each(lambda g, m: list(rule(g, m, state["count"], h)), grads, state["m"])
        updates, buffers = (each(lambda g, pair, i=i: pair[i], grads, pairs) for i in (0, 1))
        return updates, {"count": state["count"] + 1, "m": buffers}

    return tt.Optimizer(init, update, hyper)


def adam_like(
    *, corrected: bool = True, inside: bool = False, rooted: bool = True, swapped: bool = False, one_beta: bool = False
) -> tt.Optimizer:
    """Adam, with a slip to choose."""

    def init(params: Any) -> Any:
        count = tree.leaves(params)[0].new_zeros((), dtype=torch.int64)
        return {"count": count, "m": each(torch.zeros_like, params), "v": each(torch.zeros_like, params)}

    def update(grads: Any, state: Any, params: Any, h: Hyper) -> tuple[Any, Any]:
        t, (b1, b2) = state["count"] + 1, (h["beta2"], h["beta1"]) if swapped else (h["beta1"], h["beta2"])
        m = each(lambda m, g: b1.to(g) * m + (1 - b1).to(g) * g, state["m"], grads)
        new = 1 - b1 if one_beta else 1 - b2
        v = each(lambda v, g: b2.to(g) * v + new.to(g) * g * g, state["v"], grads)
        whole = (1 - b1**t, 1 - b2**t) if corrected else (torch.ones(()), torch.ones(()))

        def step(m: Tensor, v: Tensor) -> Tensor:
            m, v, eps = m / whole[0].to(m), v / whole[1].to(v), h["eps"].to(m)
            below = (v + eps).sqrt() if inside else v.sqrt() + eps if rooted else v + eps
            return -h["lr"].to(m) * m / below

        return each(step, m, v), {"count": t, "m": m, "v": v}

    return tt.Optimizer(init, update, {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8})


def down(g: Tensor, p: Tensor, h: Hyper) -> Tensor:
    return -h["lr"].to(g) * g


def init_of(init: Callable[[Any], Any]) -> tt.Optimizer:
    """Gradient descent with this first state, which it passes on."""
    good = stateless(down, lr=0.1)
    return tt.Optimizer(init, good.update, good.hyper)


def counting() -> tt.Optimizer:
    calls: list[int] = []

    def rule(g: Tensor, p: Tensor, h: Hyper) -> Tensor:
        calls.append(1)
        return -h["lr"].to(g) * g * (1 + 1e-3 * len(calls))

    return stateless(rule, lr=0.1)


def noisy() -> tt.Optimizer:
    return stateless(lambda g, p, h: -h["lr"].to(g) * (g + 1e-3 * torch.randn_like(g)), lr=0.1)


def first_half(grads: Any, state: Any, params: Any, h: Hyper) -> tuple[Any, Any]:
    leaves = [-h["lr"].to(g) * g * (0.5 if i == 0 else 1.0) for i, g in enumerate(tree.leaves(grads))]
    return tree.unflatten(grads, leaves), state


def written(g: Tensor, m: Tensor, t: Tensor, h: Hyper) -> tuple[Tensor, Tensor]:
    m = m.mul_(0.5).add_(g)
    return -h["lr"].to(g) * m, m


def clipped(grads: Any, state: Any, params: Any, h: Hyper) -> tuple[Any, Any]:
    """Each parameter to the norm by itself."""
    return each(lambda g: -h["lr"].to(g) * g * (h["max_norm"].to(g) / (g.norm() + 1e-6)).clamp(max=1), grads), state


def lengthened(grads: Any, state: Any, params: Any, h: Hyper) -> tuple[Any, Any]:
    """All gradients to the norm, short ones too."""
    norm = torch.stack([g.square().sum() for g in tree.leaves(grads)]).sum().sqrt()
    return each(lambda g: -h["lr"].to(g) * g * (h["max_norm"].to(g) / (norm + 1e-6)), grads), state


def first_norm(grads: Any, state: Any, params: Any, h: Hyper) -> tuple[Any, Any]:
    """The norm of absolute values."""
    norm = torch.stack([g.abs().sum() for g in tree.leaves(grads)]).sum()
    return each(lambda g: -h["lr"].to(g) * g * (h["max_norm"].to(g) / (norm + 1e-6)).clamp(max=1), grads), state


def turning(grads: Any, state: Any, params: Any, h: Hyper) -> tuple[Any, Any]:
    """A count that is whole at first and real later."""
    return each(lambda g: -h["lr"].to(g) * g, grads), {"count": state["count"] + 1.0}


def bare(update: Callable[..., Any], **hyper: float) -> tt.Optimizer:
    return tt.Optimizer(lambda p: {}, update, hyper)


def filled(x: float) -> Callable[[Any], Any]:
    one = torch.full((1,), x)
    return lambda params: {"a": one, "b": one}


class Breaker(NamedTuple):
    """An optimizer that breaks a law, and what is said of it."""

    law: str
    optimizer: tt.Optimizer
    says: str
    more: Mapping[str, Any] = {}


BREAKERS = {
    "python-count": Breaker("initial-state", init_of(lambda p: {"count": 0}), "the state has count = 0"),
    "own-params": Breaker(
        "initial-state", init_of(lambda p: {"m": p}), "shares its storage with the parameter student"
    ),
    "one-zero": Breaker("initial-state", init_of(filled(0.0)), "b of the state shares its storage with a of the state"),
    "low-zeros": Breaker(
        "initial-state",
        init_of(lambda p: each(lambda x: torch.zeros(x.shape, device=x.device), p)),
        "parameters of torch.float64 gave the state",
    ),
    "wide-later": Breaker(
        "structure", buffered(lambda g, m, t, h: (-0.1 * g, m.double() + g), lr=0.1), "after step 1 the state has m."
    ),
    "kept-axis": Breaker("structure", stateless(lambda g, p, h: -0.1 * g.reshape(1, *g.shape)), "the update has"),
    "wide-update": Breaker("structure", stateless(lambda g, p, h: -h["lr"] * g.double(), lr=0.1), "and its update"),
    "one-forgotten": Breaker(
        "structure", bare(lambda g, s, p, h: ({"student": each(torch.neg, g["student"])}, s)), "it raised"
    ),
    "decay-in-place": Breaker(
        "inputs-untouched", stateless(lambda g, p, h: -h["lr"].to(g) * g.add_(p), lr=0.1), "of the gradients"
    ),
    "buffer-in-place": Breaker("inputs-untouched", buffered(written, lr=0.1), "of the state"),
    "step-in-place": Breaker("inputs-untouched", stateless(lambda g, p, h: p.sub_(g) * 0), "of the parameters"),
    "closure-count": Breaker("deterministic", counting(), "of two like runs differs"),
    "noise": Breaker("deterministic", noisy(), "draws from the global generator"),
    "by-position": Breaker("order-of-names", bare(first_half, lr=0.1), "in another order of names"),
    "view": Breaker(
        "strides", stateless(lambda g, p, h: -h["lr"].to(g) * g.view(-1).view(g.shape), lr=0.1), "view size"
    ),
    "over-norm": Breaker("is-finite", stateless(lambda g, p, h: -h["lr"].to(g) * g / g.norm(), lr=0.1), "not finite"),
    "large-less-large": Breaker(
        "float32", stateless(lambda g, p, h: -h["lr"].to(g) * ((g + 1e6) - 1e6), lr=0.1), "in float32 and in float64"
    ),
    "rounded-away": Breaker(
        "bfloat16", stateless(lambda g, p, h: -h["lr"].to(g) * ((g + 300) - 300), lr=0.1), "of their size apart"
    ),
    "elsewhere": Breaker(
        "device", init_of(lambda p: {"count": torch.zeros((), dtype=torch.int64)}), "at first the state has count"
    ),
    "item": Breaker("device", stateless(lambda g, p, h: -h["lr"].item() * g, lr=0.1), "it raised"),
    "uphill": Breaker(
        "against-the-gradient", stateless(lambda g, p, h: h["lr"].to(g) * g, lr=0.1), "the loss rises by"
    ),
    "uphill-later": Breaker(
        "descends",
        buffered(lambda g, m, t, h: (h["lr"].to(g) * torch.where(t == 0, -g, g), m), lr=0.1),
        "it went to",
    ),
    "rate-squared": Breaker(
        "proportional-to-the-rate", stateless(lambda g, p, h: -(h["lr"].to(g) ** 2) * g, lr=0.1), "three times the rate"
    ),
    "decay-without-rate": Breaker(
        "proportional-to-the-rate",
        stateless(lambda g, p, h: -h["lr"].to(g) * g - 0.01 * p, lr=0.1),
        "at rate 0, step 1 moves",
    ),
    "restless": Breaker("at-rest", stateless(lambda g, p, h: -h["lr"].to(g) * (g + 0.01), lr=0.1), "step 1 moves"),
    "restless-decay": Breaker(
        "at-rest",
        stateless(
            lambda g, p, h: -h["lr"].to(g) * (g + (0.01 + h["weight_decay"].to(g)) * p), lr=0.1, weight_decay=0.1
        ),
        "step 1 moves",
    ),
    "growing-decay": Breaker(
        "weight-decay-shrinks",
        stateless(lambda g, p, h: -h["lr"].to(g) * (g - h["weight_decay"].to(g) * p), lr=0.1, weight_decay=0.1),
        "the decay makes",
    ),
    "no-decay": Breaker("weight-decay-shrinks", stateless(down, lr=0.1, weight_decay=0.1), "nothing shrinks"),
    "piling-up": Breaker(
        "bounded-steps", buffered(lambda g, m, t, h: (-h["lr"].to(g) * (m + g), m + g), lr=0.1), "step 20 is"
    ),
    "l2-for-adamw": Breaker(
        "reference",
        optim.chain(optim.add_weight_decay(0.1), optim.adam(0.1)),
        "the parameters and the reference's",
        {"reference": lambda p: T.AdamW(p, 0.1, weight_decay=0.1)},
    ),
    "no-correction": Breaker("averages-are-corrected", adam_like(corrected=False), "with one gradient throughout"),
    "one-beta-for-both": Breaker(
        "first-step-is-the-rate", adam_like(one_beta=True), "at a rate of 0.01, the first step"
    ),
    "half-a-step": Breaker(
        "plain-step",
        buffered(lambda g, m, t, h: (-h["lr"].to(g) * m / 2, h["momentum"].to(g) * m + g), lr=0.1, momentum=0.9),
        "the step and what it should be",
    ),
    "eps-inside": Breaker("scale-free", adam_like(inside=True), "1000 times those below"),
    "no-root": Breaker("scale-free", adam_like(rooted=False), "1000 times those below"),
    "roles-exchanged": Breaker(
        "momentum-coasts",
        buffered(
            lambda g, m, t, h: (
                -h["lr"].to(g) * ((1 - h["momentum"].to(g)) * m + h["momentum"].to(g) * g),
                (1 - h["momentum"].to(g)) * m + h["momentum"].to(g) * g,
            ),
            lr=0.1,
            momentum=0.9,
        ),
        "0.6 times the one before",
    ),
    "buffer-not-kept": Breaker(
        "momentum-coasts",
        buffered(lambda g, m, t, h: (-h["lr"].to(g) * (h["momentum"].to(g) * m + g), m), lr=0.1, momentum=0.9),
        "nothing coasts",
    ),
    "betas-swapped": Breaker("no-momentum-no-memory", adam_like(swapped=True), "without momentum, along step 2"),
    "one-step-late": Breaker(
        "no-momentum-no-memory",
        buffered(
            lambda g, m, t, h: (
                -h["lr"].to(g) * torch.where(t == 0, g, m),
                h["momentum"].to(g) * m + g,
            ),
            lr=0.1,
            momentum=0.9,
        ),
        "without momentum, along step 2",
    ),
    "each-clipped": Breaker("clips-to-the-norm", bare(clipped, lr=0.1, max_norm=1.0), "max_norm is 1"),
    "lengthened": Breaker("clips-to-the-norm", bare(lengthened, lr=0.1, max_norm=1.0), "and it clips"),
    "first-norm": Breaker("clips-to-the-norm", bare(first_norm, lr=0.1, max_norm=1.0), "and it clips"),
    "python-branch": Breaker(
        "one-graph", stateless(lambda g, p, h: -0.1 * g if h["lr"] > 0.05 else -0.01 * g, lr=0.1), "it raised"
    ),
    "turning-real": Breaker(
        "one-graph",
        tt.Optimizer(lambda p: {"count": tree.leaves(p)[0].new_zeros((), dtype=torch.int64)}, turning, {"lr": 0.1}),
        "4 steps took 2 graphs",
    ),
    "float-rate": Breaker("vmap", stateless(lambda g, p, h: -float(h["lr"]) * g, lr=0.1), "it raised"),
    "detached-rate": Breaker(
        "numbers-are-differentiable",
        stateless(lambda g, p, h: -h["lr"].detach().to(g) * g, lr=0.1),
        "with lr the parameters change by",
    ),
    "closure-rate": Breaker(
        "every-number-counts", stateless(lambda g, p, h: -0.1 * g, lr=0.1), "the same whatever lr is"
    ),
    "detached-gradient": Breaker(
        "gradients-are-differentiable",
        stateless(lambda g, p, h: -h["lr"].to(g) * g.detach(), lr=0.1),
        "along a direction of the gradients",
    ),
}


def found(trial: Trial, law: str) -> str:
    """What a trial finds of a law, as a report tells it; "" if it holds."""
    report = judge(trial, only=[law])
    return str(report) if report.failed else ""


@pytest.mark.parametrize("name", BREAKERS)
def test_a_law_is_broken_and_said_to_be(name: str) -> None:
    law, optimizer, says, more = BREAKERS[name]
    trial = optimizer_trial(optimizer, name=name, **more)
    text = found(trial, law)
    assert says in text
    assert "likely cause: " in text
    assert f"\n{law}: " in text


LOOKED_AT_ONLY = {
    "wide-state": buffered(lambda g, m, t, h: (-h["lr"].to(g) * m, m + g), lr=0.1),
    "scalar-parameters": buffered(lambda g, m, t, h: (-h["lr"] * g, h["lr"] * m + g), lr=0.1),
    "finite-derivatives-at-rest": adam_like(),
    "each-parameter-by-itself": OWN["clip"].optimizer,
    "each-coordinate-by-itself": OWN["lars"].optimizer,
    "relative-to-the-weights": OWN["sgd"].optimizer,
    "averages-are-corrected": OWN["momentum"].optimizer,
    "scale-free": OWN["sgd"].optimizer,
}


@pytest.mark.parametrize("law", LOOKED_AT_ONLY)
def test_what_is_looked_at_may_differ_without_failing(law: str) -> None:
    report = judge(optimizer_trial(LOOKED_AT_ONLY[law], name="one"), only=[law])
    assert [o.status for o in report.outcomes] == ["differs"]
    assert not report.failed


def test_every_law_has_a_part_that_breaks_it_and_a_cause() -> None:
    assert {one.name for one in LAWS} == {breaker.law for breaker in BREAKERS.values()} | set(LOOKED_AT_ONLY)
    assert all(one.says.endswith(".") and one.cause for one in LAWS)


def test_the_twin_without_a_slip_obeys_everything() -> None:
    assert check_optimizer(adam_like(), reference=lambda p: T.Adam(p, 0.1), name="twin").failed == ()


def test_a_failure_shrinks_to_one_number() -> None:
    text = found(optimizer_trial(BREAKERS["uphill"].optimizer, name="up"), "against-the-gradient")
    assert "student.fc.weight = [[0.0]]" in text
    assert text.count("0.25") == 1


# -- what the names claim, and of which parameters


def reach(optimizer: tt.Optimizer, *kinds: str) -> bool:
    return OptimizerSubject("one", optimizer).covers(*kinds)


def test_a_name_claims_only_where_it_reaches_every_rate() -> None:
    adam, clip, slow = optim.adam(0.1), optim.clip_by_norm(1.0), optim.sgd(0.1, momentum=0.9)
    split = {"head": ".*fc.*", "body": ".*"}
    assert reach(adam, "beta1", "beta2")
    assert reach(optim.chain(clip=clip, adam=adam), "clip", "beta1")
    assert reach(optim.chain(clip, adam), "clip", "beta1")
    mixed = optim.partition({"head": optim.chain(clip, adam), "body": slow}, split)
    assert not any(reach(mixed, kind) for kind in ("clip", "beta1", "momentum"))
    named = optim.partition({"head": optim.chain(clip=clip, adam=adam), "body": optim.chain(adam=adam)}, split)
    assert not reach(named, "clip")
    assert reach(named, "beta1", "beta2")
    assert reach(optim.partition({"head": slow, "body": slow}, split), "momentum")
    assert not reach(optim.sgd(0.1), "momentum")


def test_params_stand_for_the_names_that_an_optimizer_goes_by() -> None:
    opt = optim.partition({"head": optim.sgd(0.1), "rest": optim.sgd(0.01)}, {"head": "net\\.head\\..*", "rest": ".*"})
    with pytest.raises(tt.TransferError, match=r"gets no parameter.*Give an example of the parameters it is for"):
        optimizer_trial(opt)
    params = {"net": {"head.w": torch.ones(2, 2), "body.w": torch.ones(3)}}
    report = check_optimizer(opt, params=params)
    assert report.taken.endswith("on parameters net.head.w, net.body.w")


def test_an_excuse_needs_a_reason_and_a_use() -> None:
    breaker = BREAKERS["rate-squared"]
    reason = {"proportional-to-the-rate": "the rate is a variance"}
    report = check_optimizer(breaker.optimizer, expected_failed_checks=reason)
    assert [o.law.name for o in report.outcomes if o.status == "excused"] == list(reason)
    with pytest.raises(LawBroken, match="said to fail \\(it is the twin\\) and it holds"):
        check_optimizer(stateless(down, lr=0.1), expected_failed_checks={"vmap": "it is the twin"}, name="down")


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(tt.TransferError, match="expected an Optimizer, got SGD"):
        optimizer_trial(torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1))  # type: ignore[arg-type]
