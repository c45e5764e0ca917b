"""Fusion by optimal transport."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.channel_nets import refuses_what_is_not_finite
from tests.support.digits import digits
from ttransfer._errors import TransferError
from ttransfer.core._types import Params
from ttransfer.weights import (
    average,
    chain,
    channel_groups,
    ot_alignment,
    permute_channels,
    pool,
    transport_channels,
    within,
)


def perceptron(width: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width + 1), nn.ReLU(), nn.Linear(width + 1, 2)
    ).double()


X = torch.ones(1, 3, dtype=torch.float64)


def by_hand(a: Params, b: Params, reg: float) -> tuple[list[Tensor], Params]:
    """Algorithm 1 of the paper, for a perceptron, with POT."""
    ot = pytest.importorskip("ot")
    plans, before = [], torch.eye(3, dtype=torch.float64)
    new = {}
    for layer in ("0", "2"):
        aligned = a[f"{layer}.weight"] @ before
        mine = torch.cat([aligned, a[f"{layer}.bias"][:, None]], 1)
        there = torch.cat([b[f"{layer}.weight"], b[f"{layer}.bias"][:, None]], 1)
        cost = (mine[:, None] - there[None]).square().sum(2).sqrt()
        n, m = cost.shape
        alpha, beta = (torch.full((k,), 1 / k, dtype=torch.float64) for k in (n, m))
        if reg:
            plan = ot.sinkhorn(
                alpha, beta, cost, reg * cost.mean().item(), method="sinkhorn_log", stopThr=1e-12, numItermax=9999
            )
        else:
            plan = ot.emd(alpha, beta, cost)
        before = plan @ torch.diag(1 / plan.sum(0))
        plans.append(before.T)
        new[f"{layer}.weight"], new[f"{layer}.bias"] = before.T @ aligned, before.T @ a[f"{layer}.bias"]
    new["4.weight"], new["4.bias"] = a["4.weight"] @ before, a["4.bias"]
    return plans, {name: (x + b[name]) / 2 for name, x in new.items()}


@pytest.mark.parametrize("reg", [0.0, 0.2])
@pytest.mark.parametrize(("width", "other"), [(4, 4), (6, 4), (3, 5)])
def test_it_is_the_papers(width: int, other: int, reg: float) -> None:
    pytest.importorskip("ot")
    nets = perceptron(width, 1), perceptron(other, 2)
    (a, b), groups = (net.state_dict() for net in nets), [channel_groups(net, X) for net in nets]
    maps = ot_alignment(a, b, *groups, reg=reg)
    plans, fused = by_hand(a, b, reg)
    for matrix, plan in zip(maps.values(), plans, strict=True):
        torch.testing.assert_close(matrix, plan, rtol=0, atol=1e-9)
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)).double(), rtol=0, atol=1e-9)
    fuse = chain(within("a", transport_channels(groups[0], maps, groups[1])), average())
    for name, x in fuse.apply(pool(a=a, b=b), b).items():
        torch.testing.assert_close(x, fused[name], rtol=0, atol=1e-9)
    assert not fuse.plan(pool(a=a, b=b), b).mismatched


def test_permuted_is_recovered_with_batch_norm() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
    ).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    groups, a = channel_groups(net, x), net.state_dict()
    orders = {i: torch.randperm(g.size, generator=torch.Generator().manual_seed(i)) for i, g in enumerate(groups)}
    b = permute_channels(groups, {i: orders[i] for i, g in enumerate(groups) if not g.fixed}).apply(a, {})
    new = transport_channels(groups, ot_alignment(a, b, groups)).apply(a, {})
    for name, value in b.items():
        torch.testing.assert_close(new[name], value, rtol=0, atol=1e-12)


class Residual(nn.Module):
    """A stream that a square layer writes back to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.square, self.head = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.square(x).tanh())


def test_residual_streams_are_matched_by_what_begins_them() -> None:
    torch.manual_seed(0)
    net = Residual().double()
    groups, a = channel_groups(net, X), net.state_dict()
    free = next(i for i, group in enumerate(groups) if not group.fixed)
    b = permute_channels(groups, {free: [3, 1, 4, 0, 2]}).apply(a, {})
    new = transport_channels(groups, ot_alignment(a, b, groups)).apply(a, {})
    for name, value in b.items():
        torch.testing.assert_close(new[name], value, rtol=0, atol=1e-12)


def test_a_wide_net_and_a_narrow_one() -> None:
    """Real digits: what the paper is for. A wide teacher, carried over, starts a narrow net far above chance."""
    pytest.importorskip("ot")
    x, y = digits()

    def trained(width: int, seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(8):
            for rows in torch.randperm(1200).split(64):
                optimizer.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
        return net.eval()

    wide, narrow = trained(96, 0), trained(48, 1)
    groups, others = channel_groups(wide, x[:2]), channel_groups(narrow, x[:2])
    maps = ot_alignment(wide.state_dict(), narrow.state_dict(), groups, others)
    sums = {i: 2 * matrix for i, matrix in maps.items()}

    def accuracy(params: Params) -> float:
        guesses = torch.func.functional_call(narrow, params, (x[1200:],)).argmax(1)
        return (guesses == y[1200:]).float().mean().item()

    alone = transport_channels(groups, maps, others, reads=sums).apply(wide.state_dict(), {})
    fused = average().apply(pool(a=alone, b=dict(narrow.state_dict())), {})
    shuffled = {
        i: matrix[torch.randperm(len(matrix), generator=torch.Generator().manual_seed(0))] for i, matrix in maps.items()
    }
    blind = transport_channels(groups, shuffled, others, reads={i: 2 * m for i, m in shuffled.items()})
    unmatched = average().apply(pool(a=blind.apply(wide.state_dict(), {}), b=dict(narrow.state_dict())), {})
    assert accuracy(fused) > 0.8
    assert accuracy(fused) > accuracy(unmatched) + 0.05


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    nets = perceptron(4), perceptron(3)
    groups = [channel_groups(net, X) for net in nets]
    with pytest.raises(TransferError, match=r"ot_alignment: a group names '0\.bias', which is not there"):
        ot_alignment({"0.weight": torch.ones(4, 3)}, nets[0].state_dict(), groups[0])
    with pytest.raises(TransferError, match="ot_alignment: one net has 2 groups of channels, the other 4"):
        ot_alignment(nets[0].state_dict(), nets[1].state_dict(), groups[0][:2], groups[1])
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(TransferError, match="transport is solved by POT: pip install POT"):
        ot_alignment(nets[0].state_dict(), nets[1].state_dict(), *groups)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(wrong: float) -> None:
    refuses_what_is_not_finite(ot_alignment, wrong)
