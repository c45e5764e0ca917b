"""REPAIR: a merged net's units vary as much as those that it was merged from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.core._types import Params
from ttransfer.weights import average, pool, repair


def module(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 2, bias=seed >= 0),
        nn.ReLU(),
        nn.Conv2d(6, 5, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    ).double()


def outputs(params: Params, x: Tensor, at: int) -> Tensor:
    """What the layer gives, channels first."""
    net = copy.deepcopy(module())
    net.load_state_dict(params)
    return net[: at + 1](x).detach().movedim(1, 0).flatten(1)


A, B = dict(module(0).state_dict()), dict(module(1).state_dict())
BOTH = pool(a=A, b=B)
X = torch.randn(30, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.5


@pytest.mark.parametrize("weights", [None, {"a": 1.0, "b": 3.0}])
def test_moments_are_those_in_between(weights: dict[str, float] | None) -> None:
    soup = average(weights).apply(BOTH, {})
    new = repair(module(), soup, BOTH, X.split([7, 13, 10]), weights=weights)
    w = (0.5, 0.5) if weights is None else (0.25, 0.75)
    for at in (0, 2, 5):
        ends = [outputs(params, X, at) for params in (A, B)]
        now = outputs(new, X, at)
        mean, std = (sum(p * f(x) for p, x in zip(w, ends, strict=True)) for f in (_mean, _std))
        torch.testing.assert_close(_mean(now), mean, rtol=0, atol=1e-10)
        torch.testing.assert_close(_std(now), std, rtol=0, atol=1e-10)
        assert not torch.allclose(_std(outputs(soup, X, at)), _std(now))
    assert torch.equal(new["7.weight"], soup["7.weight"])
    assert list(new) == list(soup)


def _mean(x: Tensor) -> Tensor:
    return x.mean(1)


def _std(x: Tensor) -> Tensor:
    return x.std(1, correction=0)


def test_one_net_is_left_as_it_is() -> None:
    new = repair(module(), A, pool(a=A, b=A), [X])
    for name, x in A.items():
        torch.testing.assert_close(new[name], x, rtol=0, atol=1e-10)


def test_what_never_varies_stays() -> None:
    dead = {**A, "0.weight": A["0.weight"].clone()}
    dead["0.weight"][0] = 0
    new = repair(module(), dead, pool(a=A, b=B), [X])
    assert all(x.isfinite().all() for x in new.values())
    assert not new["0.weight"][0].any()


def test_without_a_bias_the_spread_is_right() -> None:
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 1)).double()
    other = {name: torch.randn_like(x) for name, x in net.state_dict().items()}
    both = pool(a=dict(net.state_dict()), b=other)
    x = torch.randn(20, 3, dtype=torch.float64)
    new = repair(net, average().apply(both, {}), both, [x])
    wanted = sum((x @ w.T).std(0, correction=0) for w in (both["a/0.weight"], both["b/0.weight"])) / 2
    torch.testing.assert_close((x @ new["0.weight"].T).std(0, correction=0), wanted, rtol=0, atol=1e-12)


def test_nothing_else_changes() -> None:
    net = module().train()
    before = {name: x.clone() for name, x in BOTH.items()}
    soup = average().apply(BOTH, {})
    kept = {name: x.clone() for name, x in soup.items()}
    repair(net, soup, BOTH, [X])
    assert net.training
    assert all(torch.equal(x, before[name]) for name, x in BOTH.items())
    assert all(torch.equal(x, kept[name]) for name, x in soup.items())
    assert not any(layer._forward_hooks for layer in net.modules())


def test_refusals() -> None:
    norm = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    state = dict(norm.state_dict())
    with pytest.raises(TransferError, match="repair: '1' is a batch norm, which does this: use tt"):
        repair(norm, state, pool(a=state), [torch.ones(2, 1)])
    with pytest.raises(TransferError, match="repair: there are no batches"):
        repair(module(), A, BOTH, [])
    with pytest.raises(TransferError, match=r"repair: the module's '0\.weight' is missing"):
        repair(module(), {}, BOTH, [X])
