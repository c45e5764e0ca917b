"""Adapters on trial: the library's obey every law, and for every law there is an adapter that breaks it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from ttransfer.testing._adapters import adapter_trial, check_adapter
from ttransfer.testing._law import LawBroken, judge
from ttransfer.testing.laws import _adapter

Params = dict[str, Tensor]
LIKE = torch.empty(8, 4)


def draw(generator: torch.Generator, like: Tensor, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=like.dtype) - 0.5


def weights(generator: torch.Generator, like: Tensor) -> Params:
    width = like.shape[-1]
    return {"w": draw(generator, like, width, width), "b": draw(generator, like, width)}


def affine(params: Params, x: Tensor) -> Tensor:
    return F.linear(x, params["w"], params["b"])


def scales(generator: torch.Generator, like: Tensor) -> Params:
    return {"s": torch.ones(like.shape[-1], dtype=like.dtype)}


def scaled(params: Params, x: Tensor) -> Tensor:
    return params["s"] * x


class Breaker(NamedTuple):
    """A law, an adapter that breaks it, and what is said."""

    law: str
    says: str
    init: Callable[[torch.Generator, Tensor], Any] = weights
    apply: Callable[[Any, Tensor], Any] = affine
    more: Mapping[str, Any] = {}


KEPT: list[Any] = []
CACHE: dict[torch.dtype, Params] = {}


def remembered(generator: torch.Generator, like: Tensor) -> Params:
    KEPT[:] = [like.shape[-1]]
    return scales(generator, like)


def counted(params: Params, x: Tensor) -> Tensor:
    KEPT.append(0)
    return affine(params, x) + len(KEPT)


def cached(generator: torch.Generator, like: Tensor) -> Params:
    return CACHE.setdefault(like.dtype, weights(generator, like))


def seeds_global(generator: torch.Generator, like: Tensor) -> Params:
    own = torch.random.default_generator.manual_seed(generator.initial_seed())
    return weights(own, like)


def by_numpy(generator: torch.Generator, like: Tensor) -> Params:
    return {"s": torch.from_numpy(np.random.default_rng().standard_normal(like.shape[-1])).to(like.dtype)}


def reseeded(generator: torch.Generator, like: Tensor) -> Params:
    return weights(torch.Generator().manual_seed(generator.initial_seed()), like)


def one_seed(generator: torch.Generator, like: Tensor) -> Params:
    seed = int(torch.randint(1000, (), generator=generator))
    return {k: draw(torch.Generator().manual_seed(seed), like, 4, 4) for k in "wv"}


def popped(params: Params, x: Tensor) -> Tensor:
    return params.pop("w").sum() * x + params["b"]


def added(params: Params, x: Tensor) -> Tensor:
    x += params["b"]
    return x @ params["w"]


def branching(params: Params, x: Tensor) -> Tensor:
    return affine(params, x) if x.sum() > 0 else -affine(params, x)


def batch_normed(params: Params, x: Tensor) -> Tensor:
    return params["s"] * (x - x.mean(0))


def two_zeros(generator: torch.Generator, like: Tensor) -> Params:
    width = like.shape[-1]
    return {"a": torch.zeros(width, 2, dtype=like.dtype), "b": torch.zeros(2, width, dtype=like.dtype)}


def constant(value: Callable[[Tensor], Tensor]) -> Callable[[torch.Generator, Tensor], Params]:
    return lambda generator, like: {"s": value(like)}


BREAKERS = [
    Breaker("runs", "it raised RuntimeError: ", apply=lambda p, x: x @ p["w"][1:]),
    Breaker("runs", "init raised IndexError", init=lambda g, like: {"s": torch.ones(like.shape[5])}),
    Breaker("runs", "init returned list, wanted a flat dict", init=lambda g, like: [torch.ones(4)]),
    Breaker("runs", "init returned 'layer': dict, wanted a flat", init=lambda g, like: {"layer": weights(g, like)}),
    Breaker("runs", "it returned tuple, no tensor", apply=lambda p, x: (x, x)),
    Breaker("flat-parameters", "'s' is on the meta device", constant(lambda x: x.new_ones(x.shape[1])), scaled),
    Breaker(
        "flat-parameters", "'s' requires a gradient", constant(lambda x: torch.ones(4, requires_grad=True)), scaled
    ),
    Breaker("flat-parameters", "'s' is of torch.int64", constant(lambda x: torch.arange(4)), scaled),
    Breaker("parameter-dtype", "for torch.float64 's' is of torch.float32", constant(lambda x: torch.ones(4)), scaled),
    Breaker(
        "fresh-parameters",
        "'v' shares its memory with 's'",
        lambda g, like: dict.fromkeys("sv", torch.ones(4, dtype=like.dtype)),
        lambda p, x: p["s"] * p["v"] * x,
    ),
    Breaker("fresh-parameters", "'s' is expanded", constant(lambda x: torch.ones((), dtype=x.dtype).expand(4)), scaled),
    Breaker("fresh-parameters", "'w' has the memory of 'w' of the call before", cached),
    Breaker(
        "generator-alone", "draws from the global generator", constant(lambda x: torch.randn(4).to(x.dtype)), scaled
    ),
    Breaker("generator-alone", "draws from the global generator, or seeds it", seeds_global),
    Breaker("generator-alone", "one seed gave two values of 's'", by_numpy, scaled),
    Breaker("seed-counts", "'w' is the same for every seed", lambda g, like: weights(torch.Generator(), like)),
    Breaker("seed-counts", "'w' is the same when one generator is asked twice", reseeded),
    Breaker("seed-counts", "'w' and 'v' are drawn alike", one_seed, lambda p, x: x @ p["w"] @ p["v"]),
    Breaker("finite-start", "'s' is [nan, nan, nan, nan]", constant(lambda x: 0 / torch.zeros(4).to(x.dtype)), scaled),
    Breaker(
        "init-by-shape",
        "on the meta device, init raised",
        lambda g, x: {"s": torch.full((4,), x.mean().item())},
        scaled,
    ),
    Breaker(
        "init-by-shape",
        "for 1 rows, on the meta device, 'b'",
        lambda g, x: {"b": draw(g, x, len(x), 1)},
        lambda p, x: x + p["b"].sum(),
    ),
    Breaker("rows-kept", "1 rows became a result of shape (4,)", apply=lambda p, x: affine(p, x).squeeze()),
    Breaker(
        "rows-kept", "2 rows became a result of shape (1, 4)", apply=lambda p, x: affine(p, x).mean(0, keepdim=True)
    ),
    Breaker("rows-kept", "one row of the result is of shape", apply=lambda p, x: F.pad(affine(p, x), (0, len(x)))),
    Breaker("feature-dtype", "a feature of torch.float32 gave torch.float64", apply=lambda p, x: affine(p, x).double()),
    Breaker("rows-apart", "row 0 becomes another", scales, batch_normed),
    Breaker(
        "rows-apart", "row 1 becomes another", scales, lambda p, x: p["s"] * x + torch.arange(len(x)).to(x)[:, None]
    ),
    Breaker(
        "hard-inputs",
        "feature = [[0.0, 0.0, 0.0, 0.0]]\nresult = [[nan, nan, nan, nan]]",
        scales,
        lambda p, x: p["s"] * x / x.norm(dim=1, keepdim=True),
    ),
    Breaker("identity", "at the start it changes the feature", more={"identity": True}),
    Breaker("deterministic", "it draws from the global generator", apply=lambda p, x: F.dropout(affine(p, x), 0.1)),
    Breaker("deterministic", "two calls gave this and that", apply=counted),
    Breaker("deterministic", "two calls gave this and that", remembered, lambda p, x: p["s"] * x * KEPT[0]),
    Breaker("inputs-untouched", "it changed feature\n", apply=added),
    Breaker("inputs-untouched", "it changed the names in params: now b", apply=popped),
    Breaker("names-decide", "with the names of params in their order", apply=lambda p, x: x @ next(iter(p.values()))),
    Breaker("float32", "in float32 it is another", apply=lambda p, x: affine(p, x + 1e6) - affine(p, x * 0 + 1e6)),
    Breaker("strides", "it raised RuntimeError: view size", apply=lambda p, x: affine(p, x.view(-1).view(-1, 4))),
    Breaker("defaults", "with another default device it raised", apply=lambda p, x: affine(p, x) + torch.ones(4)),
    Breaker(
        "defaults",
        "a default dtype of float32 and of float64",
        apply=lambda p, x: affine(p, x) + torch.tensor([0.1], device=x.device),
    ),
    Breaker(
        "bfloat16", "in bfloat16 it is another", apply=lambda p, x: affine(p, x + 1000.0) - affine(p, x * 0 + 1000.0)
    ),
    Breaker("trains", "nor one step later: a, b", two_zeros, lambda p, x: x + x @ p["a"] @ p["b"]),
    Breaker("trains", "nor one step later: b", apply=lambda p, x: x @ p["w"]),
    Breaker("trains", "nor one step later: w", apply=lambda p, x: F.linear(x, p["w"].detach(), p["b"])),
    Breaker(
        "units-part",
        "'w' moves by 0.202, and all that it has along axis 1 stays equal",
        lambda g, x: {k: torch.full((4, 4), 0.1, dtype=x.dtype) for k in "wv"},
        lambda p, x: (x @ p["w"]).tanh() @ p["v"],
    ),
    Breaker(
        "every-row",
        "in 's' (4,), along axis 0, these have no gradient: 2, 3",
        scales,
        lambda p, x: x * p["s"][:2].repeat(2),
    ),
    Breaker("changes-result", "whatever these are: b", apply=lambda p, x: x @ p["w"] + p["b"] - p["b"].detach()),
    Breaker("finite", "the result is not finite", apply=lambda p, x: affine(p, x).log()),
    Breaker("finite", "the gradient of params['s'] is not finite", scales, lambda p, x: (p["s"] * x - x).abs().sqrt()),
    Breaker(
        "gradcheck", "along a random direction of params", apply=lambda p, x: affine(p, x) * p["w"].norm().detach()
    ),
    Breaker(
        "gradcheck-input",
        "along a random direction of feature",
        apply=lambda p, x: 2 * affine(p, x.detach()) - affine(p, x),
    ),
    Breaker("reference", "the map and its reference give this and that", more={"reference": lambda p, x: x @ p["w"]}),
    Breaker(
        "reference-gradient",
        "the gradients of feature are this and that",
        apply=lambda p, x: affine(p, 2 * x - x.detach() if x.requires_grad else x) + 0 * x,
        more={"reference": affine},
    ),
    Breaker("feature-gradient", "these never get a gradient: 0, 1, 2, 3", apply=lambda p, x: affine(p, x.detach())),
    Breaker("one-graph", "it does not compile", apply=branching),
    Breaker("vmap", "it raised RuntimeError: ", apply=branching),
    Breaker("compiled-vmap", "it raised ", apply=branching),
]


@pytest.mark.parametrize("breaker", BREAKERS, ids=lambda b: b.law)
def test_broken(breaker: Breaker) -> None:
    trial = adapter_trial(tt.Adapter(breaker.init, breaker.apply), LIKE, name="it", **breaker.more)
    (outcome,) = judge(trial, only=[breaker.law]).outcomes
    assert outcome.status == "broken"
    assert breaker.says in outcome.found


LOOKED_AT = [
    Breaker(
        "init-device",
        "with another default device",
        apply=affine,
        init=lambda g, x: {"w": torch.ones(4, 4, dtype=x.dtype), "b": torch.ones(4, dtype=x.dtype)},
    ),
    Breaker("row-order", "it becomes another", scales, lambda p, x: p["s"] * x - x.roll(1, 0), {"rows_apart": False}),
    Breaker("identity", "at the start it changes the feature"),
]


@pytest.mark.parametrize("breaker", LOOKED_AT, ids=lambda b: b.law)
def test_looked_at(breaker: Breaker) -> None:
    trial = adapter_trial(tt.Adapter(breaker.init, breaker.apply), LIKE, name="it", **breaker.more)
    (outcome,) = judge(trial, only=[breaker.law]).outcomes
    assert (outcome.status, outcome.failed) == ("differs", False)
    assert breaker.says in outcome.found


def test_every_law_has_a_breaker() -> None:
    assert {b.law for b in (*BREAKERS, *LOOKED_AT)} == {law.name for law in _adapter.LAWS}


def slow_linear(params: Params, x: Tensor) -> Tensor:
    return torch.einsum("...d,od->...o", x, params["weight"]) + params.get("bias", 0.0)


def slow_mlp(params: Params, x: Tensor) -> Tensor:
    for i in range(0, len(params), 2):
        x = torch.einsum("...d,od->...o", x if i == 0 else x.clamp_min(0), params[f"{i}.weight"]) + params[f"{i}.bias"]
    return x


def slow_conv(params: Params, x: Tensor) -> Tensor:
    for i in range(0, len(params), 2):
        weight, bias = params[f"{i}.weight"], params[f"{i}.bias"]
        reach = weight.shape[-1] // 2
        x = x if i == 0 else x.clamp_min(0)
        wide = F.pad(x, (reach,) * 4)
        places = [
            torch.einsum("nchw,ochw->no", wide[..., y : y + 2 * reach + 1, z : z + 2 * reach + 1], weight) + bias
            for y in range(x.shape[2])
            for z in range(x.shape[3])
        ]
        x = torch.stack(places, -1).unflatten(-1, x.shape[2:])
    return x


OURS = {
    "conv": (tt.adapters.conv(3), (4, 2, 3, 3), slow_conv),
    "conv-deep-and-wide": (tt.adapters.conv(3, 2, kernel=3), (4, 2, 3, 3), slow_conv),
    "linear": (tt.adapters.linear(3), (8, 5), slow_linear),
    "linear-one": (tt.adapters.linear(1), (8, 5), slow_linear),
    "linear-without-bias-on-tokens": (tt.adapters.linear(5, bias=False), (8, 4, 5), slow_linear),
    "mlp": (tt.adapters.mlp(16), (8, 5), slow_mlp),
    "mlp-deep-on-tokens": (tt.adapters.mlp(6, 4, out=3), (8, 2, 5), slow_mlp),
    "mlp-without-hidden": (tt.adapters.mlp(out=2), (8, 3), slow_mlp),
}


@pytest.mark.parametrize("name", OURS)
def test_ours_obey(name: str) -> None:
    adapter, shape, slow = OURS[name]
    report = check_adapter(adapter, torch.empty(shape, device="meta"), reference=slow, identity=False)
    assert {outcome.status for outcome in report.outcomes} == {"obeyed", "seems"}
    assert report.seems == ("init-device",)


def bottleneck(generator: torch.Generator, like: Tensor) -> Params:
    return {"down": draw(generator, like, 4, 2), "up": torch.zeros(2, 4, dtype=like.dtype)}


def normed(params: Params, x: Tensor) -> Tensor:
    return params["s"] * (x - x.mean(0)) * torch.rsqrt(x.var(0, correction=0) + 1e-5)


def attention(params: Params, x: Tensor) -> Tensor:
    q, k, v = x @ params["w"], x + params["b"], x
    return (q @ k.mT).softmax(-1) @ v


def convolved(params: Params, x: Tensor) -> Tensor:
    return F.conv2d(x, params["w"], padding=1)


RIGHT: dict[str, tuple[tt.Adapter, tuple[int, ...], dict[str, Any]]] = {
    "bottleneck": (
        tt.Adapter(bottleneck, lambda p, x: x + F.gelu(x @ p["down"]) @ p["up"]),
        (2, 4),
        {"identity": True},
    ),
    "batch-norm": (tt.Adapter(scales, normed), (2, 4), {"rows_apart": False}),
    "attention": (tt.Adapter(weights, attention), (2, 3, 4), {}),
    "convolution": (tt.Adapter(lambda g, x: {"w": draw(g, x, 3, x.shape[1], 3, 3)}, convolved), (2, 2, 3, 3), {}),
    "pool": (tt.Adapter(lambda g, x: {}, lambda p, x: x.mean((-2, -1))), (2, 3, 2, 2), {}),
    "scale": (tt.Adapter(scales, scaled), (3, 4), {"identity": True}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_obey(name: str) -> None:
    adapter, shape, more = RIGHT[name]
    assert not judge(adapter_trial(adapter, torch.empty(shape), **more)).failed


def test_a_report_says_what_was_taken_and_what_broke() -> None:
    with pytest.raises(LawBroken) as raised:
        check_adapter(tt.Adapter(weights, added), LIKE, name="hasty")
    text = str(raised.value)
    assert "hasty obeys" in text
    assert "Taken as: a feature (n, 4); its parameters: w (4, 4), b (4,)" in text
    assert "inputs-untouched: The arguments are left as they were" in text
    assert "likely cause: an operation in place" in text


def test_the_smallest_input_is_shown() -> None:
    """Two rows, and one number that is not zero, are enough to see that rows are mixed."""
    trial = adapter_trial(tt.Adapter(scales, lambda p, x: p["s"] * x - x.max(0).values), torch.empty(8, 1))
    (outcome,) = judge(trial, only=["rows-apart"]).outcomes
    assert "feature = [[0.0], [0.25]]" in outcome.found or "feature = [[0.25], [0.0]]" in outcome.found


def test_reversal_is_excused_in_words() -> None:
    reversal = tt.Adapter(scales, lambda p, x: p["s"] * (2 * x.detach() - x))
    why = {"gradcheck-input": "the gradient is reversed on purpose"}
    report = check_adapter(reversal, LIKE, identity=True, expected_failed_checks=why)
    assert [o.reason for o in report.outcomes if o.status == "excused"] == list(why.values())
    with pytest.raises(LawBroken, match=r"it was said to fail .* and it holds"):
        check_adapter(tt.Adapter(scales, scaled), LIKE, expected_failed_checks=why)


def test_trouble_is_told_once() -> None:
    report = judge(adapter_trial(tt.adapters.linear(3), torch.empty(2, 3, 4, 4)))
    assert [o.law.name for o in report.outcomes] == ["runs"]
    assert "linear: wanted a feature (n, d) or (n, tokens, d), got (4, 3, 4, 4) float64" in report.failed[0].found


def test_mistakes_are_named() -> None:
    with pytest.raises(tt.TransferError, match=r"wanted Adapter\(init, apply\), got Linear"):
        adapter_trial(torch.nn.Linear(2, 2), LIKE)  # type: ignore[arg-type]
    with pytest.raises(tt.TransferError, match=r"linear: like must be a feature of real numbers .* \(3,\) int64"):
        adapter_trial(tt.adapters.linear(2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(tt.TransferError, match="there is no law 'gradchek'; did you mean 'gradcheck'"):
        check_adapter(tt.adapters.linear(2), LIKE, expected_failed_checks={"gradchek": "?"})


def test_nothing_global_is_moved() -> None:
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    check_adapter(tt.adapters.linear(2), LIKE)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() == dtype
    assert math.isfinite(torch.ones(()).item())
