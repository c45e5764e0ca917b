"""Weight maps on trial: the library's obey every law, and for every law there is one that breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from ttransfer.core._maps import Made, Plan
from ttransfer.testing._law import LawBroken, judge
from ttransfer.testing._weight_maps import check_weight_map, weight_map_trial
from ttransfer.testing.laws import _weight_map

Params = dict[str, Tensor]
Tensors = Mapping[str, Tensor]
SQUARES = {"q": torch.zeros(3, 3), "k": torch.zeros(3, 3), "bias": torch.zeros(3), "steps": torch.tensor(2)}
STRICT = tt.weights.match_by_name()


def copies(names: Mapping[str, str]) -> dict[str, Made]:
    return {name: Made((source,)) for name, source in names.items()}


def nobody(names: Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(names, "")


def asked_for(src: Tensors, like: Tensors) -> Params:
    return {k: x for k, x in src.items() if k in like}


def strict(src: Tensors, like: Tensors) -> Params:
    return STRICT.apply(asked_for(src, like), like)


def plan(src: Tensors, like: Tensors) -> Plan:
    found = STRICT.plan(asked_for(src, like), like)
    return found._replace(unused={**found.unused, **nobody(k for k in src if k not in like)})


def but(change: Callable[[Tensor], Tensor]) -> Callable[[Tensors, Tensors], Params]:
    """Match, and change q."""
    return lambda src, like: {k: change(x) if k == "q" else x for k, x in strict(src, like).items()}


class Breaker(NamedTuple):
    """A law, a map that breaks it, and what is said."""

    law: str
    says: str
    apply: Callable[[Any, Any], Any] = strict
    plan: Callable[[Any, Any], Any] = plan
    src: Tensors = SQUARES
    like: Tensors = SQUARES
    more: Mapping[str, Any] = {}


def lenient(src: Tensors, like: Tensors) -> Params:
    return {k: src[k] if k in src and src[k].shape == x.shape else x for k, x in like.items()}


def all_is_well(src: Tensors, like: Tensors) -> Plan:
    return Plan(copies({k: k for k in like}))


def by_size(src: Tensors, like: Tensors) -> Plan:
    fits = {k: k for k, x in like.items() if k in src and src[k].numel() == x.numel()}
    bent = {k: "its size" for k in like if k in src and k not in fits}
    missing = tuple(k for k in like if k not in src)
    return Plan(copies(fits), (), missing, bent, {}, nobody(k for k in src if k not in fits))


def taken_by_size(src: Tensors, like: Tensors) -> Params:
    found = by_size(src, like)
    if len(found.made) < len(like):
        raise tt.TransferError("something is missing")
    return {k: src[k] for k in like}


def exchanged(src: Tensors, like: Tensors) -> Params:
    new = strict(src, like)
    return {**new, "q": new["k"], "k": new["q"]}


def popped(src: Params, like: Tensors) -> Params:
    return {"q": src.pop("q"), **{k: src[k] for k in ("k", "bias", "steps")}}


def collided(src: Tensors, like: Tensors) -> Params:
    return {name.removeprefix("module."): x for name, x in src.items()}


def collided_plan(src: Tensors, like: Tensors) -> Plan:
    copied = {name.removeprefix("module."): name for name in src}
    return Plan(copies(copied), missing=tuple(k for k in like if k not in copied))


def swapped_plan(src: Tensors, like: Tensors) -> Plan:
    found = plan(src, {k: x for k, x in like.items() if k != "fc"})
    return Plan({**found.made, "head": Made(("fc",))})


def by_value(src: Tensors, like: Tensors) -> Plan:
    found = plan(src, like)
    return found._replace(unused=nobody(k for k in src if src[k].sum() > 0))


def by_first(src: Tensors, like: Tensors) -> Plan:
    return plan(src, like)._replace(mismatched={next(iter(like)): "it is the first"})


def eager_plan(src: Params, like: Tensors) -> Plan:
    found = plan(src, like)
    src.clear()
    return found


def half(src: Tensors, like: Tensors) -> Params:
    return {**strict(src, like), "bias": torch.cat([src["bias"][:2], like["bias"][2:]])}


def summed(src: Tensors, like: Tensors) -> Params:
    new = strict(src, like)
    return {**new, "q": new["q"] * new["k"]}


def branching(src: Tensors, like: Tensors) -> Params:
    new = strict(src, like)
    return {**new, "q": new["q"] if bool(src["q"].sum() != 0) else -new["q"]}


def ordered(src: Tensors, like: Tensors) -> Params:
    return dict(zip(like, src.values(), strict=True))


DRAWN: list[Tensor] = []


def noisy(x: Tensor) -> Tensor:
    return x + 1e-3 * torch.randn(3, 3, dtype=x.dtype)


def counted(x: Tensor) -> Tensor:
    DRAWN.append(x)
    return x * len(DRAWN)


FLAT = {"w": torch.zeros(2, 3)}
TALL = {"w": torch.zeros(3, 2)}

BREAKERS = [
    Breaker("runs", "it raised KeyError: 'v'", lambda src, like: {"q": src["v"]}),
    Breaker("runs", "plan raised KeyError: 'v'", plan=lambda src, like: {"q": src["v"]}),
    Breaker("runs", "plan returned dict, wanted a Plan", plan=lambda src, like: {"q": "q"}),
    Breaker("runs", "it returned 'q' str, no tensor", lambda src, like: {"q": "q", "k": "k"}),
    Breaker(
        "plan-form",
        "made: 'v', which is not in the target",
        plan=lambda s, x: plan(s, x)._replace(made=copies({"v": "q"})),
    ),
    Breaker(
        "plan-form",
        "made of: 'v', which is not in the source",
        plan=lambda s, x: plan(s, x)._replace(made=copies({"q": "v"})),
    ),
    Breaker(
        "plan-form", "missing: 'v', which is not in the target", plan=lambda s, x: plan(s, x)._replace(missing=("v",))
    ),
    Breaker("plan-is-dry", "plan raised", plan=by_value),
    Breaker("plan-is-dry", "with the target's names the other way round mismatched is", plan=by_first),
    Breaker("plan-is-dry", "plan changed src: 'q'", plan=eager_plan),
    Breaker(
        "targets-accounted",
        "the plan says nothing of the target's 'q'",
        plan=lambda s, x: Plan({}, missing=("k", "bias", "steps")),
    ),
    Breaker(
        "targets-accounted",
        "without 'q' in the source: the plan says nothing of the target's 'q'",
        lenient,
        lambda s, x: plan(s, x)._replace(missing=()),
    ),
    Breaker(
        "targets-accounted",
        "of 'q' that it is made, and that it is missing",
        plan=lambda s, x: plan(s, x)._replace(missing=("q",)),
    ),
    Breaker(
        "sources-accounted",
        "nothing changes with 'w', and the plan does not call it unused",
        collided,
        collided_plan,
        {"w": torch.zeros(2), "module.w": torch.zeros(2)},
        {"w": torch.zeros(2)},
    ),
    Breaker(
        "sources-accounted",
        "'q' is called unused, and 'q' changes with it",
        plan=lambda s, x: plan(s, x)._replace(unused={"q": ""}),
    ),
    Breaker(
        "sources-accounted",
        "with a source more: nothing changes with",
        plan=lambda s, x: plan(s, x)._replace(unused={}),
    ),
    Breaker("plan-agrees", "'q' is said to be made of 'q', and follows 'k'", exchanged),
    Breaker(
        "plan-agrees",
        "'q' is said to be made, and is not in the result",
        lambda s, x: {k: s[k] for k in ("k", "bias", "steps")},
    ),
    Breaker(
        "plan-agrees",
        "'q' follows 'q', and the plan does not say that it is made",
        plan=lambda s, x: Plan(copies({k: k for k in x if k != "q"}), missing=("q",)),
    ),
    Breaker(
        "plan-agrees",
        "'bias' comes from no source, and is not the target's own",
        lambda s, x: {**strict(s, x), "bias": torch.zeros_like(x["bias"])},
        lambda s, x: Plan(copies({k: k for k in x if k != "bias"}), missing=("bias",), unused={"bias": ""}),
    ),
    Breaker(
        "target-shapes",
        "'w' is (2, 3), the target's (3, 2), and the plan",
        lambda s, x: dict(s),
        lambda s, x: Plan(copies({"w": "w"})),
        FLAT,
        TALL,
    ),
    Breaker(
        "target-shapes", "with 'q' in another shape: 'q' is (9, 1), the target's (3, 3)", lambda s, x: dict(s), by_size
    ),
    Breaker(
        "nothing-silent",
        "which has no source, 'no_such_layer.no_such_tensor' keeps the target's values",
        lenient,
        all_is_well,
    ),
    Breaker(
        "nothing-silent",
        "without 'q' in the source, 'q' keeps the target's values",
        lambda s, x: {k: v for k, v in lenient(s, x).items() if k in SQUARES},
        all_is_well,
    ),
    Breaker(
        "nothing-silent",
        "with 'q' a row longer, 'q' keeps the target's values",
        lambda s, x: lenient({k: s[k] for k in x}, x),
        all_is_well,
    ),
    Breaker("target-dtype", "from torch.float64 to torch.float64, 'q' is of torch.float32", but(lambda w: w.float())),
    Breaker("numbers-kept", "'q' has other numbers than 'q'", but(lambda w: w * 0.5)),
    Breaker("numbers-kept", "'q' has other numbers than 'q'", but(lambda w: w.bfloat16().to(w.dtype))),
    Breaker("verbatim", "'q' is not 'q'", but(lambda w: w.mT), more={"verbatim": True}),
    Breaker("copied-whole", "1 of the 3 numbers in 'bias' do not follow 'bias'", half),
    Breaker("source-gradient", "no gradient: q", but(lambda w: w.detach())),
    Breaker("apply-on-meta", "there it raised", branching),
    Breaker(
        "chains",
        "before a map that does nothing it makes",
        plan=lambda s, x: plan(s, x)._replace(made={"v": Made(("q",)), **plan(s, x).made}),
    ),
    Breaker("deterministic", "it draws from the global generator", but(noisy)),
    Breaker("deterministic", "two calls gave this and that", but(counted)),
    Breaker("inputs-untouched", "it changed the names in src", popped),
    Breaker("inputs-untouched", "it changed src['q']", but(lambda w: w.mul_(2))),
    Breaker("inputs-untouched", "it returned the very dict that it got as src", lambda s, x: s),
    Breaker("names-decide", "with the names of src in their order", ordered),
    Breaker("float32", "in float32 it is another", but(lambda w: (w + 1e6) - 1e6)),
    Breaker("strides", "it raised RuntimeError: view size", but(lambda w: w.view(9).view(3, 3) * 1)),
    Breaker("defaults", "with another default device", but(lambda w: w + torch.zeros(3, 3))),
    Breaker("finite", "the result is not finite", but(lambda w: w.log())),
    Breaker("gradcheck-input", "along a random direction of src", but(lambda w: w * w.norm().detach())),
    Breaker("reference", "the map and its reference give this and that", more={"reference": but(lambda w: w.mT)}),
    Breaker(
        "reference-gradient", "the gradients of src['q'] are", but(lambda w: w.detach()), more={"reference": strict}
    ),
    Breaker("vmap", "it raised RuntimeError: ", branching),
]


@pytest.mark.parametrize("breaker", BREAKERS, ids=lambda b: b.law)
def test_broken(breaker: Breaker) -> None:
    part = tt.WeightMap(breaker.apply, breaker.plan)
    trial = weight_map_trial(part, breaker.src, breaker.like, name="it", **breaker.more)
    (outcome,) = judge(trial, only=[breaker.law]).outcomes
    assert outcome.status == "broken"
    assert breaker.says in outcome.found


LOOKED_AT = [
    Breaker("verbatim", "'q' is not 'q'", but(lambda w: w.flip(1))),
    Breaker("ties", "'k' and 'q' were one tensor, and 'k' and 'q' are two", but(lambda w: w * 1)),
    Breaker("linear", "for a sum 'q' is no sum", summed),
    Breaker("bfloat16", "in bfloat16 it is another", but(lambda w: w + 1000.0 - 1000.0)),
    Breaker("one-graph", "it does not compile", branching),
    Breaker("compiled-vmap", "it raised ", branching),
]


@pytest.mark.parametrize("breaker", LOOKED_AT, ids=lambda b: b.law)
def test_looked_at(breaker: Breaker) -> None:
    trial = weight_map_trial(tt.WeightMap(breaker.apply, breaker.plan), breaker.src, breaker.like, name="it")
    (outcome,) = judge(trial, only=[breaker.law]).outcomes
    assert (outcome.status, outcome.failed) == ("differs", False)
    assert breaker.says in outcome.found


def test_every_law_has_a_breaker() -> None:
    # A weight map has no parameters of its own to check the gradient by.
    assert {b.law for b in (*BREAKERS, *LOOKED_AT)} | {"gradcheck"} == {law.name for law in _weight_map.LAWS}


SOURCE = {
    "module.conv.weight": torch.zeros(4, 3),
    "module.conv.steps": torch.tensor(3),
    "module.head.weight": torch.zeros(9, 4),
    "extra": torch.ones(1),
}
TARGET = {
    "stem.weight": torch.zeros(4, 3),
    "stem.steps": torch.tensor(0),
    "fc.weight": torch.zeros(2, 4),
    "scale": torch.ones(2),
}
STRIP = tt.weights.rename(r"module\.(.*)", r"\1")
MOVE = tt.weights.rename({"conv": "stem", "head": "fc"})
TAKE = tt.weights.match(allow=r"fc.*|scale|extra|module\..*")
FILL = tt.weights.match(allow="fc.*|scale|extra")

OURS: dict[str, tuple[tt.WeightMap, Tensors, Tensors]] = {
    "rename": (tt.weights.rename({"module.conv": "stem", "module.head": "fc"}), SOURCE, TARGET),
    "rename-without-target": (tt.weights.rename({"extra": "scale"}), SOURCE, {}),
    "rename-by-pattern": (STRIP, SOURCE, TARGET),
    "rename-exchanging": (tt.weights.rename({"q": "k", "k": "q"}), SQUARES, SQUARES),
    "match": (STRICT, SQUARES, SQUARES),
    "match-allowing": (TAKE, {**SOURCE, "stem.weight": torch.zeros(4, 3), "stem.steps": torch.tensor(1)}, TARGET),
    "chain": (tt.weights.chain(STRIP, MOVE, FILL), SOURCE, TARGET),
    "chain-of-chains": (tt.weights.chain(tt.weights.chain(STRIP, MOVE), tt.weights.chain(FILL)), SOURCE, TARGET),
    "chain-of-one": (tt.weights.chain(STRICT), SQUARES, SQUARES),
    "chain-of-none": (tt.weights.chain(), SQUARES, SQUARES),
}


@pytest.mark.parametrize("name", OURS)
def test_ours_obey(name: str) -> None:
    part, src, like = OURS[name]
    report = check_weight_map(part, src, like, verbatim=True)
    assert {outcome.status for outcome in report.outcomes} == {"obeyed", "seems"}
    assert report.seems == ("ties", "linear", "bfloat16", "one-graph", "compiled-vmap")


def test_what_the_plan_calls_missing_may_stay_as_it_is() -> None:
    assert not check_weight_map(
        tt.weights.match(allow="bias"), {k: x for k, x in SQUARES.items() if k != "bias"}, SQUARES
    ).failed


def planned(sources: Mapping[str, tuple[str, ...]], src: Tensors, like: Tensors) -> Plan:
    used = {name for each in sources.values() for name in each}
    missing = tuple(k for k in like if k not in sources)
    made = {name: Made(each) for name, each in sources.items()}
    return Plan(made, missing=missing, unused=nobody(k for k in src if k not in used))


def same_names(src: Tensors, like: Tensors) -> Plan:
    return planned({k: (k,) for k in like if k in src}, src, like)


def resized(src: Tensors, like: Tensors) -> Params:
    grid = src["pos"].T[None]
    return {"pos": F.interpolate(grid, size=len(like["pos"]), mode="linear", align_corners=True)[0].T}


def averaged(src: Tensors, like: Tensors) -> Params:
    return {k: (src[f"a.{k}"] + src[f"b.{k}"]) / 2 for k in like}


def averaged_plan(src: Tensors, like: Tensors) -> Plan:
    return planned({k: (f"a.{k}", f"b.{k}") for k in like if f"a.{k}" in src and f"b.{k}" in src}, src, like)


def folded(src: Tensors, like: Tensors) -> Params:
    scale = src["bn.weight"] * torch.rsqrt(src["bn.variance"] + 1e-5)
    return {"weight": src["weight"] * scale[:, None], "bias": src["bn.bias"]}


def folded_plan(src: Tensors, like: Tensors) -> Plan:
    return planned({"weight": ("weight", "bn.weight", "bn.variance"), "bias": ("bn.bias",)}, src, like)


NORMED = {
    "weight": torch.zeros(3, 2),
    "bn.weight": torch.ones(3),
    "bn.bias": torch.zeros(3),
    "bn.variance": torch.ones(3),
}
RIGHT: dict[str, tuple[tt.WeightMap, Tensors, Tensors]] = {
    "resize": (tt.WeightMap(resized, same_names), {"pos": torch.zeros(4, 2)}, {"pos": torch.zeros(7, 2)}),
    "keep-size": (tt.WeightMap(resized, same_names), {"pos": torch.zeros(4, 2)}, {"pos": torch.zeros(4, 2)}),
    "slice": (tt.WeightMap(lambda s, x: {"w": s["w"][:2, :3]}, same_names), {"w": torch.zeros(5, 4)}, FLAT),
    "transpose": (
        tt.WeightMap(lambda s, x: {"w": s["w"].mT}, same_names),
        {"w": torch.zeros(3, 3)},
        {"w": torch.zeros(3, 3)},
    ),
    "average": (
        tt.WeightMap(averaged, averaged_plan),
        {"a.w": torch.zeros(3), "b.w": torch.zeros(3)},
        {"w": torch.zeros(3)},
    ),
    "fold": (tt.WeightMap(folded, folded_plan), NORMED, {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}),
    "towards": (tt.WeightMap(lambda s, x: {"w": x["w"] + 0.3 * (s["w"] - x["w"])}, same_names), FLAT, FLAT),
    "new-rows": (
        tt.WeightMap(lambda s, x: {"w": torch.cat([s["w"], x["w"][2:]])}, same_names),
        FLAT,
        {"w": torch.zeros(4, 3)},
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_obey(name: str) -> None:
    part, src, like = RIGHT[name]
    assert not judge(weight_map_trial(part, src, like)).failed


def test_a_report_says_what_was_taken_and_what_broke() -> None:
    with pytest.raises(LawBroken) as raised:
        check_weight_map(tt.WeightMap(exchanged, plan), SQUARES, SQUARES)
    text = str(raised.value)
    assert "exchanged obeys" in text
    assert "a source: q (3, 3), k (3, 3), bias (3,), steps (); a target: q (3, 3), k (3, 3)" in text
    assert "plan-agrees: What the plan says of a result is so" in text
    assert "likely cause: plan and apply written twice" in text


def test_mistakes_are_named() -> None:
    with pytest.raises(tt.TransferError, match=r"wanted WeightMap\(apply, plan\), got function"):
        weight_map_trial(strict, SQUARES, SQUARES)  # type: ignore[arg-type]
    with pytest.raises(tt.TransferError, match=r"match_by_name: like must be a dict of tensors, got \[\]"):
        weight_map_trial(STRICT, SQUARES, [])  # type: ignore[arg-type]
    report = judge(weight_map_trial(STRICT, {}, SQUARES))
    assert [o.law.name for o in report.outcomes] == ["runs"]
    assert "TransferError: match_by_name: 4 of 4 target tensors get nothing" in report.failed[0].found
