"""Fisher merging, and what estimates the Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.pools import assert_tied, tied
from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import average, empirical_fisher, fisher, fisher_diagonal, pool


def net(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    return {name: x.detach() for name, x in made.state_dict().items()}


def sure(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        name: torch.rand_like(x) for name, x in net(seed).items() if x.is_floating_point() and "running" not in name
    }


SRC, FISHERS = pool(a=net(0), b=net(1)), pool(a=sure(2), b=sure(3))
LIKE = net(4)


def slow(weights: Mapping[str, float]) -> Callable[..., dict[str, Tensor]]:
    """Each entry's weighted mean."""

    def formula(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        new = {}
        for name in (key.removeprefix("a/") for key in src if key.startswith("a/")):
            if not src[f"a/{name}"].is_floating_point():
                new[name] = src[f"a/{name}"]
                continue
            one = torch.ones_like(src[f"a/{name}"])
            f = {who: weights[who] * FISHERS.get(f"{who}/{name}", one) for who in "ab"}
            new[name] = (f["a"] * src[f"a/{name}"] + f["b"] * src[f"b/{name}"]) / (f["a"] + f["b"])
        return new

    return formula


TRIALS = (
    weight_map_trial(
        fisher(FISHERS, floor=0.0),
        SRC,
        LIKE,
        reference=slow({"a": 1.0, "b": 1.0}),
        examples=4,
        name="fisher",
    ),
    weight_map_trial(
        fisher(FISHERS, weights={"a": 0.2, "b": 0.8}, floor=0.0),
        SRC,
        LIKE,
        reference=slow({"a": 0.2, "b": 0.8}),
        examples=4,
        name="weighed",
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_limits() -> None:
    flat = {name: torch.full_like(x, 2.5) for name, x in FISHERS.items()}
    for name, x in fisher(flat).apply(SRC, {}).items():
        torch.testing.assert_close(x, average().apply(SRC, {})[name], rtol=0, atol=1e-12)
    nothing = {name: torch.zeros_like(x) for name, x in FISHERS.items()}
    for name, x in fisher(nothing).apply(SRC, {}).items():
        torch.testing.assert_close(x, average().apply(SRC, {})[name], rtol=0, atol=1e-12)
    only_a = {name: x if name.startswith("a/") else torch.zeros_like(x) for name, x in FISHERS.items()}
    torch.testing.assert_close(fisher(only_a, floor=1e-15).apply(SRC, {})["0.weight"], SRC["a/0.weight"])
    plan = fisher(FISHERS).plan(SRC, LIKE)
    assert plan.made["0.weight"].how == "mean of 2 by Fisher information"
    assert plan.made["1.running_mean"].how == "mean: without a Fisher"


def test_quadratic_losses_are_merged_to_the_minimum_of_their_sum() -> None:
    """Where each loss is a parabola along every axis, its Fisher is its curvature, and the merge is exact."""
    at, curve = {"a": [1.0, -2.0], "b": [3.0, 0.5]}, {"a": [2.0, 0.1], "b": [1.0, 5.0]}
    tensors = {who: {"w": torch.tensor(x, dtype=torch.float64)} for who, x in at.items()}
    curves = {who: {"w": torch.tensor(x, dtype=torch.float64)} for who, x in curve.items()}
    merged = fisher(pool(curves)).apply(pool(tensors), {})["w"]

    def loss(w: Tensor) -> Tensor:
        return sum(((w - tensors[who]["w"]).square() * curves[who]["w"]).sum() for who in at)  # type: ignore[return-value]

    assert torch.func.grad(loss)(merged).abs().max() < 1e-12


def classifier() -> tuple[tt.Functional, dict[str, Tensor], Tensor, Tensor]:
    torch.manual_seed(0)
    made = tt.functional(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double())
    params, _ = made.init(torch.Generator())
    return made, params, torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 3


def of_each(net: tt.Functional, params: dict[str, Tensor], x: Tensor, y: int) -> dict[str, Tensor]:
    """The gradient for one row, by backward."""
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    F.cross_entropy(net.apply(leaves, {}, x[None]).value, torch.tensor([y])).backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_diagonal_is_that_of_a_loop(chunk: int | None) -> None:
    net, params, x, _ = classifier()
    found = fisher_diagonal(lambda p, x: net.apply(p, {}, x).value, params, x.split(3), chunk=chunk)
    wanted = {name: torch.zeros_like(p) for name, p in params.items()}
    for row in x:
        p = net.apply(params, {}, row[None]).value.softmax(1)[0]
        for y in range(3):
            for name, slope in of_each(net, params, row, y).items():
                wanted[name] += p[y] * slope.square() / len(x)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12)
        assert not found[name].requires_grad


@pytest.mark.parametrize("chunk", [None, 2])
def test_empirical_fisher_is_that_of_a_loop(chunk: int | None) -> None:
    net, params, x, y = classifier()

    def loss(p: dict[str, Tensor], example: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(net.apply(p, {}, example[0][None]).value, example[1][None])

    found = empirical_fisher(loss, params, [(x[:4], y[:4]), (x[4:], y[4:])], chunk=chunk)
    wanted = {name: torch.zeros_like(p) for name, p in params.items()}
    for row, label in zip(x, y.tolist(), strict=True):
        for name, slope in of_each(net, params, row, label).items():
            wanted[name] += slope.square() / len(x)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12)


def test_diagonal_is_the_hessian_of_the_divergence() -> None:
    """The Fisher information is what the Kullback-Leibler divergence curves like, at its minimum."""
    net, params, x, _ = classifier()
    flat = torch.cat([p.flatten() for p in params.values()])

    def unflat(v: Tensor) -> dict[str, Tensor]:
        parts = v.split([p.numel() for p in params.values()])
        return {name: part.reshape(p.shape) for (name, p), part in zip(params.items(), parts, strict=True)}

    here = net.apply(params, {}, x).value.log_softmax(1)

    def divergence(v: Tensor) -> Tensor:
        there = net.apply(unflat(v), {}, x).value.log_softmax(1)
        return (here.exp() * (here - there)).sum(1).mean()

    curves = unflat(torch.func.jacrev(torch.func.grad(divergence))(flat).diagonal())
    found = fisher_diagonal(lambda p, x: net.apply(p, {}, x).value, params, [x])
    for name, value in curves.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12)


def test_refusals() -> None:
    less = {name: x for name, x in FISHERS.items() if name != "b/0.weight"}
    with pytest.raises(TransferError, match=r"there is no Fisher for 'b/0\.weight', though another has one"):
        fisher(less).apply(SRC, {})
    with pytest.raises(TransferError, match=r"the Fisher for 'b/0\.bias' is \(3,\) float32, wanted \(4,\)"):
        fisher({**FISHERS, "b/0.bias": torch.ones(3)}).apply(SRC, {})
    with pytest.raises(TransferError, match=r"fisher: the Fisher 'a/0\.wieght' belongs to no tensor; did you mean"):
        fisher({**FISHERS, "a/0.wieght": torch.ones(3)}).apply(SRC, {})
    for nothing in ([], [torch.ones(0, 4)]):
        with pytest.raises(TransferError, match="fisher_diagonal: the batches have no rows"):
            fisher_diagonal(lambda p, x: x, {"w": torch.ones(1)}, nothing)


def test_fishers_of_nobody_are_refused() -> None:
    both = pool(a={"w": torch.ones(2)}, b={"w": torch.ones(2)})
    with pytest.raises(TransferError, match="fisher: the Fishers of 'x' belong to no checkpoint"):
        fisher(pool(x={"w": torch.ones(2)}, y={"w": torch.ones(2)})).apply(both, {})


NETS = {name: tied(seed) for seed, name in enumerate("ab")}
POOL = pool({name: net.state_dict() for name, net in NETS.items()})
# named_parameters() has one of the two names.
ONE_NAME = pool({name: {k: x.detach().abs() for k, x in net.named_parameters()} for name, net in NETS.items()})


def test_one_of_two_names_is_enough_for_tied_weights() -> None:
    new = fisher(ONE_NAME).apply(POOL, {})
    f, g, a, b = (of[f"{who}/table.weight"] for of in (ONE_NAME, POOL) for who in "ab")
    torch.testing.assert_close(new["table.weight"], (f * a + g * b) / (f + g))
    assert_tied(fisher(ONE_NAME), POOL, new)


def test_two_fishers_for_one_tensor_are_refused() -> None:
    two = {**ONE_NAME, **{f"{who}/head.weight": torch.ones(9, 6) for who in "ab"}}
    told = "fisher: 'a/table.weight' and 'a/head.weight' are one tensor, and each has a Fisher of its own; give one"
    with pytest.raises(TransferError, match=told):
        fisher(two).plan(POOL, {})
    twice = {**ONE_NAME, **{f"{who}/head.weight": ONE_NAME[f"{who}/table.weight"] for who in "ab"}}
    torch.testing.assert_close(fisher(twice).apply(POOL, {}), fisher(ONE_NAME).apply(POOL, {}))


def test_numbers_are_checked() -> None:
    for wrong, told in (
        ({"floor": -1.0}, "floor must be at least 0, got -1.0"),
        ({"floor": float("nan")}, "floor must be at least 0, got nan"),
        ({"floor": "x"}, "wanted a number for 'floor', got 'x'"),
        ({"weights": "ab"}, "wanted a number or a tensor for 'weights', got 'ab'"),
    ):
        with pytest.raises(TransferError, match=f"fisher: {told}"):
            fisher({}, **wrong)  # type: ignore[arg-type]
    with pytest.raises(TransferError, match="fisher: wanted a checkpoint, name -> tensor, got NoneType"):
        fisher(None)  # type: ignore[arg-type]
