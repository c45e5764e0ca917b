"""Git re-basin: permuted nets are recovered, and the barrier between trained ones falls."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.channel_nets import refuses_what_is_not_finite
from tests.support.digits import digits
from ttransfer._errors import TransferError
from ttransfer.core._types import Params
from ttransfer.weights import (
    Axis,
    Group,
    average,
    batch_statistics,
    channel_groups,
    permute_channels,
    pool,
    repair,
    weight_matching,
)
from ttransfer.weights._weight_matching import assignment, free_of


def run(net: nn.Module, params: Params, x: Tensor) -> Tensor:
    return torch.func.functional_call(net, params, (x,)).detach()


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def normed() -> nn.Module:
    hidden = [(nn.Linear(n, 128), nn.BatchNorm1d(128), nn.ReLU()) for n in (64, 128)]
    return nn.Sequential(*itertools.chain(*hidden), nn.Linear(128, 10))


def trained(net: nn.Module, x: Tensor, y: Tensor, seed: int, epochs: int) -> Params:
    """Fit the digits, from a start and in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    net.eval()
    return {name: t.detach().clone() for name, t in net.state_dict().items()}


def test_permuted_is_recovered() -> None:
    """A trained convolutional net and itself in disguise: the function is the same, and there is no barrier."""
    torch.manual_seed(0)
    net = convolutional()
    x, y = (part[:1200] for part in digits())
    x = x.reshape(-1, 1, 8, 8)
    trained(net, x[:600], y[:600], 0, 3)
    net = net.double().eval()
    x = x.double()[:100]
    a = dict(net.state_dict())
    groups = channel_groups(net, x[:2])
    generator = torch.Generator().manual_seed(1)
    orders = {i: torch.randperm(groups[i].size, generator=generator) for i in free_of(groups)}
    assert [len(order) for order in orders.values()] == [6, 8]
    b = permute_channels(groups, orders).apply(a, {})
    assert not torch.equal(a["0.weight"], b["0.weight"])
    found = weight_matching(a, b, groups)
    for i, order in orders.items():
        assert torch.equal(order[found[i]], torch.arange(len(order)))
    back = permute_channels(groups, found).apply(b, {})
    assert all(torch.equal(back[name], t) for name, t in a.items())
    torch.testing.assert_close(run(net, b, x), run(net, a, x), rtol=0, atol=1e-9)
    middle = average().apply(pool(a=a, b=back), {})
    torch.testing.assert_close(run(net, middle, x), run(net, a, x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [perceptron, normed])
def test_the_barrier_between_trained_nets_falls(make: Callable[[], nn.Module]) -> None:
    """Two nets that have nothing in common but their shapes and the data."""
    x, y = (part[:1200] for part in digits())
    torch.manual_seed(0)
    net, other_net = make(), make()
    a, b = trained(net, x, y, 0, 10), trained(other_net, x, y, 1, 10)
    groups = channel_groups(net, x[:2])
    matched = permute_channels(groups, weight_matching(a, b, groups)).apply(b, {})
    torch.testing.assert_close(run(net, matched, x), run(net, b, x), rtol=0, atol=1e-4)

    def barrier(other: Params, mends: bool) -> float:
        both = pool(a=a, b=other)
        soup = average().apply(both, {})
        if mends and make is normed:
            soup |= batch_statistics(net, soup, [x])
        elif mends:
            soup = repair(net, soup, both, [x])
        middle, *ends = (F.cross_entropy(run(net, p, x), y).item() for p in (soup, a, other))
        return middle - sum(ends) / 2

    plain, aligned, mended = barrier(b, mends=False), barrier(matched, mends=False), barrier(matched, mends=True)
    # Seen: 0.8 -> 0.06 -> 0.03, and 0.9 -> 0.07 -> 0.02 with batch norm.
    assert plain > 0.4
    assert aligned < plain / 6
    assert mended < plain / 15
    assert mended < barrier(b, mends=True) / 3


def test_one_hidden_layer_is_matched_best() -> None:
    """One group is one assignment problem: no order of all is better."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    a, b = ({k: torch.randn(t.shape, generator=generator) for k, t in net.state_dict().items()} for _ in range(2))
    groups = channel_groups(net, torch.ones(1, 3))
    (hidden,) = free_of(groups)

    def score(order: list[int]) -> float:
        new = permute_channels(groups, {hidden: order}).apply(b, {})
        return sum((a[name] * new[name]).sum().item() for name in a)

    best = max(itertools.permutations(range(5)), key=lambda order: score(list(order)))
    assert weight_matching(a, b, groups)[hidden].tolist() == list(best)


def test_no_single_group_can_gain() -> None:
    """Where it stops, each group's assignment is the best that it can be with the others as they are."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    a, b = ({k: torch.randn(t.shape, generator=generator) for k, t in net.state_dict().items()} for _ in range(2))
    groups = channel_groups(net, torch.ones(1, 3))
    for seed in range(3):
        found = weight_matching(a, b, groups, seed=seed)

        def score(orders: dict[int, Tensor]) -> float:
            new = permute_channels(groups, orders).apply(b, {})
            return sum((a[name] * new[name]).sum().item() for name in a)

        for i in found:
            others = (score({**found, i: torch.tensor(order)}) for order in itertools.permutations(range(4)))
            assert score(found) == pytest.approx(max(others), abs=1e-5)
        assert weight_matching(a, b, groups, seed=seed)[next(iter(found))].equal(next(iter(found.values())))


def test_residual_stream() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.square = nn.Linear(9, 24), nn.Linear(24, 20), nn.Linear(24, 24)
            self.back, self.head = nn.Linear(20, 24), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            x = x + self.back(self.block(x).relu())
            return self.head(x + self.square(x).tanh())

    torch.manual_seed(0)
    net = Residual().double()
    a = {name: t.detach() for name, t in net.state_dict().items()}
    groups = channel_groups(net, torch.ones(1, 9).double())
    generator = torch.Generator().manual_seed(2)
    orders = {i: torch.randperm(groups[i].size, generator=generator) for i in free_of(groups)}
    assert sorted(len(order) for order in orders.values()) == [20, 24]
    b = permute_channels(groups, orders).apply(a, {})
    back = permute_channels(groups, weight_matching(a, b, groups)).apply(b, {})
    for name, t in a.items():
        assert torch.equal(back[name], t)


def test_heads_of_a_transformer() -> None:
    """Dimensions of queries, of values and of the hidden layers, and the residual stream with its embeddings."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=12, depth=1, num_heads=2)
    net = net.double().eval()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    a = {name: t.detach() for name, t in net.state_dict().items()}
    groups = channel_groups(net, x)
    generator = torch.Generator().manual_seed(1)
    orders = {i: torch.randperm(groups[i].size, generator=generator) for i in free_of(groups)}
    assert len(orders) == 4
    b = permute_channels(groups, orders).apply(a, {})
    torch.testing.assert_close(run(net, b, x), run(net, a, x), rtol=0, atol=1e-9)
    back = permute_channels(groups, weight_matching(a, b, groups)).apply(b, {})
    assert all(torch.equal(back[name], t) for name, t in a.items())


def test_groups_that_overlap_are_matched_once() -> None:
    head, inner = torch.arange(6).reshape(2, 3), torch.arange(6).reshape(2, 3).T
    groups = [
        Group((Axis("w", 0, head),)),
        Group((Axis("w", 0, inner),)),
        Group((Axis("w", 1, head[:, :1]),), fixed=True),
    ]
    assert free_of(groups) == [0]


def test_assignment() -> None:
    gain = torch.tensor([[1.0, 5.0, 2.0], [4.0, 6.0, 1.0], [0.0, 1.0, 0.5]])
    assert assignment("map", gain).tolist() == [1, 0, 2]


def test_refusals() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    a = dict(net.state_dict())
    groups = channel_groups(net, torch.ones(1, 2))
    with pytest.raises(TransferError, match=r"weight_matching: a group names '0\.weight', which is not there"):
        weight_matching({}, a, groups)
    with pytest.raises(TransferError, match=r"'0\.bias' is \(3,\) float64 in the one and \(4,\) float64 in the other"):
        weight_matching(a, {**a, "0.bias": torch.ones(4)}, groups)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(wrong: float) -> None:
    refuses_what_is_not_finite(weight_matching, wrong)
