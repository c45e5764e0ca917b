"""Reparametrisations on trial: the library's obey every law, and for every law there is one that breaks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from ttransfer.testing._law import LawBroken, judge
from ttransfer.testing._reparams import check_reparam, reparam_trial
from ttransfer.testing.laws import _reparam

Params = dict[str, Tensor]
BASE = {"q": torch.zeros(3, 3), "k": torch.zeros(3, 3), "bias": torch.zeros(3), "steps": torch.tensor(2)}


def like(params: Params) -> dict[str, Any]:
    return {"dtype": params["q"].dtype}


def low_rank(generator: torch.Generator, params: Params) -> Params:
    down = {f"{k}.down": torch.rand(1, 3, generator=generator, **like(params)) for k in "qk"}
    return {**down, **{f"{k}.up": torch.zeros(3, 1, **like(params)) for k in "qk"}}


def changed(base: Params, delta: Params) -> Params:
    return {**base, **{k: base[k] + (delta[f"{k}.up"] @ delta[f"{k}.down"]).to(base[k].dtype) for k in "qk"}}


def scales(generator: torch.Generator, params: Params) -> Params:
    return {"q.scale": torch.ones(3, 1, **like(params))}


def scaled(base: Params, delta: Params) -> Params:
    return {**base, "q": base["q"] * delta["q.scale"].to(base["q"].dtype)}


def one(form: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Params, Params], Params]:
    return lambda base, delta: {**base, "q": form(base["q"], delta["q.scale"].to(base["q"].dtype))}


def start(make: Callable[[Params], Tensor]) -> Callable[[torch.Generator, Params], Params]:
    return lambda generator, params: {"q.scale": make(params)}


class Breaker(NamedTuple):
    """A law, a reparametrisation that breaks it, and what is said."""

    law: str
    says: str
    init: Callable[[torch.Generator, Params], Any] = scales
    apply: Callable[[Params, Params], Any] = scaled
    trains_base: bool = False
    more: Mapping[str, Any] = {}


def in_place(base: Params, delta: Params) -> Params:
    base["q"].mul_(delta["q.scale"])
    return base


def normalised(generator: torch.Generator, params: Params) -> Params:
    params["q"] /= params["q"].norm()
    return scales(generator, params)


def by_energy(generator: torch.Generator, params: Params) -> Params:
    rank = int((params["q"].abs() > 0.7).sum())
    return {"q.scale": torch.ones(3, 1, **like(params)), "q.extra": torch.zeros(rank, 1, **like(params))}


def zipped(base: Params, delta: Params) -> Params:
    return {**base, "q": base["q"] + list(delta.values())[0] * list(delta.values())[2]}  # noqa: RUF015


def constant(params: Params) -> Params:
    down = {f"{k}.down": torch.ones(2, 3, **like(params)) for k in "qk"}
    return {**down, **{f"{k}.up": torch.zeros(3, 2, **like(params)) for k in "qk"}}


def crossed(base: Params, delta: Params) -> Params:
    return {**changed(base, delta), "k": base["k"] + delta["q.up"] @ delta["k.down"] + 0 * delta["k.up"]}


def branching(base: Params, delta: Params) -> Params:
    return scaled(base, delta) if delta["q.scale"].sum() > 0 else dict(base)


KEPT: Params = {}


def copies(generator: torch.Generator, params: Params) -> Params:
    return {"q.new": params["q"].clone()}


def remembers(generator: torch.Generator, params: Params) -> Params:
    KEPT["q"] = params["q"].clone()
    return scales(generator, params)


def straight_through(base: Params, delta: Params) -> Params:
    ratio = base["q"] / delta["q.scale"]
    rounded = ratio + (ratio.round() - ratio).detach()
    return {**base, "q": rounded * delta["q.scale"]}


def all_shifted(generator: torch.Generator, params: Params) -> Params:
    return {"by": torch.zeros((), **like(params))}


BREAKERS = [
    Breaker("runs", "init raised KeyError: 'v'", init=start(lambda p: p["v"])),
    Breaker("runs", "init returned list, wanted a flat dict", init=lambda g, p: [torch.zeros(3)]),
    Breaker("runs", "it raised RuntimeError", apply=one(lambda w, s: w @ s[:2])),
    Breaker("runs", "it returned Tensor, no dict of tensors", apply=lambda base, delta: base["q"]),
    Breaker("flat-parameters", "'q.scale' requires a gradient", start(lambda p: torch.ones(3, 1, requires_grad=True))),
    Breaker("flat-parameters", "'q.scale' is of torch.bool", start(lambda p: p["q"] == p["q"])),
    Breaker("parameter-dtype", "for torch.float64 'q.scale' is of torch.float32", start(lambda p: torch.ones(3, 1))),
    Breaker("fresh-parameters", "'q.scale' is expanded", start(lambda p: torch.ones(1, 1, **like(p)).expand(3, 1))),
    Breaker("generator-alone", "draws from the global", start(lambda p: torch.randn(3, 1, **like(p)))),
    Breaker("seed-counts", "is the same for every seed", lambda g, p: low_rank(torch.Generator(), p), changed),
    Breaker("finite-start", "'q.scale' is [[inf]", start(lambda p: 1 / torch.zeros(3, 1, **like(p)))),
    Breaker("something-trains", "the base does not train", lambda g, p: {}, lambda base, delta: dict(base)),
    Breaker("layout-by-shapes", "'q.extra' is (0, 1), torch.float64, else", by_energy),
    Breaker("init-leaves-base", "init changed the base: 'q'", normalised),
    Breaker("init-leaves-base", "'q.scale' has the memory of the base's 'bias'", start(lambda p: p["bias"][:, None])),
    Breaker("names-kept", "names lost: bias, k, steps", apply=lambda base, delta: {"q": base["q"] * delta["q.scale"]}),
    Breaker("names-kept", "names that the base has not: q2", apply=lambda base, delta: {**base, "q2": base["q"]}),
    Breaker("names-kept", "'q' was (3, 3), torch.float32 and became (9,)", apply=one(lambda w, s: (w * s).flatten())),
    Breaker("names-kept", "became (3, 3), torch.float64", apply=one(lambda w, s: (w * s).double())),
    Breaker(
        "names-apart", "both have: q", lambda g, p: {"q": torch.ones(3, 1, **like(p))}, lambda base, delta: {**base}
    ),
    Breaker("identity", "at the start it changes 'q'", start(lambda p: torch.full((3, 1), 1.5, **like(p)))),
    Breaker("identity", "at the start it changes 'q'", apply=lambda base, delta: {**base, "q": base["k"]}),
    Breaker("base-shows", "whatever these are in the base: q", copies, lambda b, d: {**b, "q": d["q.new"]}),
    Breaker("base-shows", "these are in the base: q", remembers, lambda b, d: {**b, "q": KEPT["q"] * d["q.scale"]}),
    Breaker("named-for", "'q.up' changes 'k'", low_rank, crossed),
    Breaker("integers-kept", "'steps', of torch.int64", apply=lambda b, d: {**b, "steps": b["steps"] + 1}),
    Breaker(
        "integers-kept", "'steps', of torch.int64", all_shifted, lambda b, d: {k: x + d["by"] for k, x in b.items()}
    ),
    Breaker("deterministic", "it draws from the global generator", apply=one(lambda w, s: F.dropout(w * s, 0.1))),
    Breaker("inputs-untouched", "it changed base['q']", apply=in_place),
    Breaker("inputs-untouched", "returned the very dict that it got as base", apply=lambda b, d: b),
    Breaker("names-decide", "with the names of delta in their order", low_rank, zipped),
    Breaker("float32", "in float32 it is another", apply=one(lambda w, s: (w + 1e6) * s - 1e6 * s)),
    Breaker("strides", "it raised RuntimeError: view size", apply=one(lambda w, s: (w.view(9) * 1).view(3, 3) * s)),
    Breaker("defaults", "with another default device", apply=one(lambda w, s: w * s + torch.zeros(3, 3))),
    Breaker("bfloat16", "'q' became torch.float32", apply=lambda b, d: {**b, "q": b["q"] * d["q.scale"].float()}),
    Breaker("bfloat16", "'q' is not finite", apply=one(lambda w, s: w * s / (w * 0 + 1 + 0.001 - 1))),
    Breaker("trains", "nor one step later: q.scale", apply=one(lambda w, s: w * s.detach())),
    Breaker("trains", "k.down, k.up", low_rank, lambda b, d: {**b, "q": b["q"] + d["q.up"] @ d["q.down"]}),
    Breaker("units-part", "'q.down' moves", lambda g, p: constant(p), changed),
    Breaker(
        "every-row",
        "in 'q.scale' (3, 1), along axis 0, these have no gradient: 1, 2",
        apply=one(lambda w, s: w * s[:1]),
    ),
    Breaker("changes-result", "whatever these are: q.scale", apply=one(lambda w, s: w * (1 + s - s.detach()))),
    Breaker("finite", "the gradient of delta['q.scale'] is not finite", apply=one(lambda w, s: w * (s - s).sqrt())),
    Breaker("gradcheck", "along a random direction of delta", apply=straight_through),
    Breaker("gradcheck-input", "along a random direction of base", apply=straight_through, trains_base=True),
    Breaker("base-gradient", "no gradient for any delta: q", apply=one(lambda w, s: w.detach() * s), trains_base=True),
    Breaker("reference", "q", low_rank, changed, more={"reference": lambda b, d: changed(changed(b, d), d)}),
    Breaker(
        "reference-gradient", "delta['q.scale']", apply=one(lambda w, s: w * s.detach()), more={"reference": scaled}
    ),
    Breaker("one-graph", "it does not compile", apply=branching),
    Breaker("vmap", "it raised RuntimeError: ", apply=branching),
    Breaker("compiled-vmap", "it raised ", apply=branching),
]


@pytest.mark.parametrize("breaker", BREAKERS, ids=lambda b: b.law)
def test_broken(breaker: Breaker) -> None:
    part = tt.Reparam(breaker.init, breaker.apply, breaker.trains_base)
    (outcome,) = judge(reparam_trial(part, BASE, name="it", **breaker.more), only=[breaker.law]).outcomes
    assert outcome.status == "broken"
    assert breaker.says in outcome.found


LOOKED_AT = [
    Breaker("init-device", "with another default device", low_rank, changed),
    Breaker("init-by-shapes", "'q.new' is another for a base of other numbers", copies, lambda b, d: {**b}),
    Breaker("zero-base", "the result is not finite", apply=one(lambda w, s: s * w / w.norm())),
    Breaker("gradcheck-input", "along a random direction of base", apply=straight_through),
    Breaker("base-gradient", "no gradient for any delta: q", apply=one(lambda w, s: w.detach() * s)),
    Breaker("identity", "at the start it changes 'q'", apply=one(lambda w, s: 2 * w * s), more={"identity": None}),
]


@pytest.mark.parametrize("breaker", LOOKED_AT, ids=lambda b: b.law)
def test_looked_at(breaker: Breaker) -> None:
    part = tt.Reparam(breaker.init, breaker.apply, breaker.trains_base)
    (outcome,) = judge(reparam_trial(part, BASE, name="it", **breaker.more), only=[breaker.law]).outcomes
    assert (outcome.status, outcome.failed) == ("differs", False)
    assert breaker.says in outcome.found


def test_every_law_has_a_breaker() -> None:
    assert {b.law for b in (*BREAKERS, *LOOKED_AT)} == {law.name for law in _reparam.LAWS}


OURS: dict[str, tuple[tt.Reparam, float]] = {
    "linear": (tt.adapters.lora("fc.*", rank=2), 1.0),
    "all": (tt.adapters.lora(".*", rank=3, alpha=6.0), 2.0),
    "convolution": (tt.adapters.lora("conv.weight", rank=1, alpha=torch.tensor(4.0)), 4.0),
    "wide": (tt.adapters.lora("fc.weight"), 1.0),
}
NET = {
    "conv.weight": torch.zeros(4, 3, 3, 3),
    "conv.bias": torch.zeros(4),
    "fc.weight": torch.zeros(4, 5),
    "fc.bias": torch.zeros(4),
    "norm.weight": torch.ones(5),
    "norm.count": torch.tensor(1),
}


@pytest.mark.parametrize("name", OURS)
def test_ours_obey(name: str) -> None:
    adapt, scale = OURS[name]

    def slow(base: Params, delta: Params) -> Params:
        low = {k: (delta.get(f"{k}.lora_b"), delta.get(f"{k}.lora_a")) for k in base}
        changes = {k: scale * torch.einsum("or,rd->od", b, a) for k, (b, a) in low.items() if a is not None}
        return {k: x + changes[k].unflatten(1, x.shape[1:]) if k in changes else x for k, x in base.items()}

    report = check_reparam(adapt, NET, reference=slow)
    assert {outcome.status for outcome in report.outcomes} == {"obeyed", "seems"}
    assert report.seems == ("init-device", "init-by-shapes", "zero-base", "gradcheck-input", "base-gradient")


def magnitude(generator: torch.Generator, params: Params) -> Params:
    return {**low_rank(generator, params), "q.size": params["q"].norm(dim=1, keepdim=True)}


def dora(base: Params, delta: Params) -> Params:
    new = changed(base, delta)
    return {**new, "q": (delta["q.size"] * new["q"] / new["q"].norm(dim=1, keepdim=True)).to(base["q"].dtype)}


def standard(base: Params, delta: Params) -> Params:
    spread, middle = torch.var_mean(base["q"], 1, keepdim=True)
    return {**base, "q": (base["q"] - middle) * torch.rsqrt(spread + 1e-5)}


RIGHT: dict[str, tuple[tt.Reparam, Mapping[str, Any]]] = {
    "scale": (tt.Reparam(scales, scaled), {}),
    "dora": (tt.Reparam(magnitude, dora), {}),
    "standardised": (tt.Reparam(lambda g, p: {}, standard, True), {"identity": False}),
    "quantised": (
        tt.Reparam(scales, straight_through, True),
        {
            "identity": False,
            "expected_failed_checks": dict.fromkeys(
                ("gradcheck", "gradcheck-input"), "rounding has no derivative: the gradient is straight through"
            ),
        },
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_obey(name: str) -> None:
    part, more = RIGHT[name]
    assert not judge(reparam_trial(part, BASE, **more)).failed


def test_a_report_says_what_was_taken_and_what_broke() -> None:
    with pytest.raises(LawBroken) as raised:
        check_reparam(tt.Reparam(scales, in_place), BASE, name="hasty")
    text = str(raised.value)
    assert "a base: q (3, 3), k (3, 3), bias (3,), steps (); a delta: q.scale (3, 1)" in text
    assert "inputs-untouched: The arguments are left as they were" in text


def test_what_is_positive_stays_so() -> None:
    """A variance is drawn as a variance: its root is taken."""
    root = tt.Reparam(scales, lambda b, d: {**b, "q": b["q"] * d["q.scale"] / b["var"].sqrt()})
    base = {"q": torch.zeros(3, 3), "var": torch.ones(3)}
    assert not judge(reparam_trial(root, base), only=["finite", "gradcheck"]).failed


def test_mistakes_are_named() -> None:
    with pytest.raises(tt.TransferError, match=r"wanted Reparam\(init, apply, trains_base\), got Adapter"):
        reparam_trial(tt.adapters.linear(2), BASE)  # type: ignore[arg-type]
    with pytest.raises(tt.TransferError, match="lora: params must be a dict of tensors"):
        reparam_trial(tt.adapters.lora("q"), {})
    report = judge(reparam_trial(tt.adapters.lora("v"), BASE))
    assert [o.law.name for o in report.outcomes] == ["runs"]
    assert "init raised TransferError: pattern 'v' matches none of 4 names" in report.failed[0].found
