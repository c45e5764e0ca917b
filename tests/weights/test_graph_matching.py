"""Graph matching: the slope is that of the quadratic assignment, and permuted nets are recovered."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.channel_nets import refuses_what_is_not_finite
from ttransfer._errors import TransferError
from ttransfer.weights import Axis, Group, channel_groups, graph_matching, permute_channels
from ttransfer.weights._graph_matching import _doubly_stochastic, _slope
from ttransfer.weights._weight_matching import free_of


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    ).double()


X = torch.ones(1, 1, 4, 4, dtype=torch.float64)


def affinity(one: Any, two: Any) -> float:
    return math.exp(-math.sqrt(sum((a - b) ** 2 for a, b in zip(one, two, strict=True))))


def objective(a: dict[str, Tensor], b: dict[str, Tensor], x: Tensor, z: Tensor) -> Tensor:
    """The sum over all pairs of edges and nodes, for the net above, in plain loops."""
    total = torch.zeros((), dtype=torch.float64)
    w, v = a["0.weight"].flatten(1).tolist(), b["0.weight"].flatten(1).tolist()
    for i, k in itertools.product(range(4), repeat=2):
        total = total + x[i, k] * affinity(w[i], v[k])
        total = total + x[i, k] * affinity([a["0.bias"][i].item()], [b["0.bias"][k].item()])
    w, v = a["2.weight"].flatten(2).tolist(), b["2.weight"].flatten(2).tolist()
    for i, k in itertools.product(range(3), repeat=2):
        total = total + z[i, k] * affinity([a["2.bias"][i].item()], [b["2.bias"][k].item()])
        for j, m in itertools.product(range(4), repeat=2):
            total = total + z[i, k] * x[j, m] * affinity(w[i][j], v[k][m])
    w, v = a["5.weight"].reshape(3, 3, 4).tolist(), b["5.weight"].reshape(3, 3, 4).tolist()
    for o in range(3):
        for i, k in itertools.product(range(3), repeat=2):
            total = total + z[i, k] * affinity(w[o][i], v[o][k])
    return total


def test_slope_is_the_gradient_of_the_objective() -> None:
    net = convolutional()
    groups, a = channel_groups(net, X), {name: t.detach() for name, t in net.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    b = {name: torch.randn(t.shape, generator=generator, dtype=t.dtype) for name, t in a.items()}
    first, second = sorted(free_of(groups), key=lambda i: -groups[i].size)
    soft = {
        i: torch.rand(groups[i].size, groups[i].size, generator=generator, dtype=torch.float64) for i in (first, second)
    }
    x, z = (soft[i].clone().requires_grad_() for i in (first, second))
    wanted = torch.autograd.grad(objective(a, b, x, z), (x, z))
    on: dict[str, list[tuple[int, Axis]]] = {}
    for i in soft:
        for axis in groups[i].axes:
            on.setdefault(axis.name, []).append((i, axis))
    for i, slope in zip((first, second), wanted, strict=True):
        found = torch.zeros_like(slope)
        for axis in groups[i].axes:
            others = [(k, other) for k, other in on[axis.name] if other is not axis]
            found += _slope(a[axis.name], b[axis.name], axis, others, soft)
        torch.testing.assert_close(found, slope, rtol=0, atol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_permuted_is_recovered(noise: float) -> None:
    net = convolutional()
    groups, a = channel_groups(net, X), {name: t.detach() for name, t in net.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    orders = {i: torch.randperm(groups[i].size, generator=generator) for i in free_of(groups)}
    b = permute_channels(groups, orders).apply(a, {})
    b = {name: x + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype) for name, x in b.items()}
    found = graph_matching(a, b, groups)
    for i, order in orders.items():
        assert torch.equal(order[found[i]], torch.arange(len(order)))


def test_small_nets_are_matched_best() -> None:
    """Of all pairs of orders none has a larger objective, in most of these random pairs of nets."""
    net = convolutional()
    groups = channel_groups(net, X)
    first, second = sorted(free_of(groups), key=lambda i: -groups[i].size)
    best = 0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        a, b = (
            {k: torch.randn(t.shape, generator=generator, dtype=t.dtype) for k, t in net.state_dict().items()}
            for _ in range(2)
        )
        found = graph_matching(a, b, groups)

        def score(x: Any, z: Any, a: dict[str, Tensor] = a, b: dict[str, Tensor] = b) -> float:
            new = permute_channels(groups, {first: list(x), second: list(z)}).apply(b, {})
            edges = [(a[k].flatten(2), new[k].flatten(2)) for k in ("0.weight", "2.weight")]
            edges += [(a[k][:, None], new[k][:, None]) for k in ("0.bias", "2.bias")]
            edges.append((a["5.weight"].reshape(3, 3, 4), new["5.weight"].reshape(3, 3, 4)))
            return sum((-(p - q).square().sum(-1).sqrt()).exp().sum().item() for p, q in edges)

        here = score(found[first].tolist(), found[second].tolist())
        every = [(x, z) for x in itertools.permutations(range(4)) for z in itertools.permutations(range(3))]
        best += here >= max(score(x, z) for x, z in every) - 1e-9
    assert best >= 2, best


def test_doubly_stochastic() -> None:
    x = _doubly_stochastic(torch.randn(4, 4, dtype=torch.float64), 200)
    for axis in (0, 1):
        torch.testing.assert_close(x.sum(axis), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-9)


def test_refusals() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    a, groups = dict(net.state_dict()), channel_groups(net, torch.ones(1, 2))
    with pytest.raises(
        TransferError, match=r"graph_matching: '0\.bias' is \(3,\) float64 in the one and \(4,\) float64"
    ):
        graph_matching(a, {**a, "0.bias": torch.ones(4)}, groups)
    with pytest.raises(TransferError, match="graph_matching: wanted 0 < decay < 1 and 0 < least <= temperature"):
        graph_matching(a, a, groups, decay=1.0)
    index = torch.arange(2)[:, None]
    cube = [Group((Axis("w", axis, index), Axis(f"b{axis}", 0, index))) for axis in range(3)]
    three = {"w": torch.ones(2, 2, 2), **{f"b{axis}": torch.ones(2) for axis in range(3)}}
    with pytest.raises(TransferError, match="graph_matching: 'w' has channels on 3 axes, wanted 2 at most"):
        graph_matching(three, three, cube)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(wrong: float) -> None:
    refuses_what_is_not_finite(graph_matching, wrong)
