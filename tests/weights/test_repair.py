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


def moments_of(net: nn.Module, params: Params, name: str, x: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Of what a layer gives in all its calls, whose channels are the last axis or the second."""
    net, seen = copy.deepcopy(net), []
    net.load_state_dict(params)
    layer = net.get_submodule(name)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    layer.register_forward_hook(lambda m, inputs, out: seen.append(out.detach().movedim(axis, 0).flatten(1)))
    net(*x)
    return _mean(torch.cat(seen, 1)), _std(torch.cat(seen, 1))


def assert_in_between(net: nn.Module, names: tuple[str, ...], x: tuple[Tensor, ...]) -> Params:
    torch.manual_seed(3)
    a = dict(net.state_dict())
    b = {name: value + torch.randn_like(value) / 2 for name, value in a.items()}
    both = pool(a=a, b=b)
    new = repair(net, average().apply(both, {}), both, [x])
    for name in names:
        now = moments_of(net, new, name, x)
        ends = [moments_of(net, params, name, x) for params in (a, b)]
        for found, wanted in zip(now, zip(*ends, strict=True), strict=True):
            torch.testing.assert_close(found, sum(wanted) / 2, rtol=0, atol=1e-10)
    return new


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(groups: int) -> None:
    net = nn.Sequential(
        nn.Conv1d(3, 4, 1), nn.ReLU(), nn.ConvTranspose1d(4, 6, 3, 2, groups=groups), nn.ReLU(), nn.Conv1d(6, 2, 1)
    ).double()
    assert_in_between(net, ("0", "2"), (torch.randn(9, 3, 7, dtype=torch.float64),))


def test_one_example_without_a_batch() -> None:
    net = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(), nn.Conv1d(4, 2, 1)).double()
    x = torch.randn(3, 7, dtype=torch.float64)
    both = pool(a=dict(net.state_dict()), b={n: torch.randn_like(v) for n, v in net.state_dict().items()})
    soup = average().apply(both, {})
    torch.testing.assert_close(repair(net, soup, both, [x]), repair(net, soup, both, [x[None]]), rtol=0, atol=1e-12)


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU())
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.body(x), self.body(y)], 1))


def test_a_layer_that_runs_for_two_inputs_is_right_for_both_together() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 20, 3, dtype=torch.float64)
    assert_in_between(Pairs().double(), ("body.0", "body.2"), (x, y * 3 + 1))


class Loop(nn.Module):
    def __init__(self, *, ends: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.ends = ends

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.b(self.a(x).relu()).relu())
        return x if self.ends else self.c(x.relu())


def test_a_layer_that_is_given_what_it_made() -> None:
    torch.manual_seed(0)
    x = (torch.randn(20, 4, dtype=torch.float64),)
    with pytest.raises(TransferError, match="repair: 'a' runs 2 times in a forward, and is given what it made itself"):
        assert_in_between(Loop(ends=False).double(), ("b",), x)
    net = Loop(ends=True).double()
    new = assert_in_between(net, ("b",), x)  # `a` runs last, and stays
    assert set(new) == set(net.state_dict())


def test_tied_and_computed_weights() -> None:
    x = torch.randn(20, 4)
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    tied[2].weight = tied[0].weight
    state = dict(tied.state_dict())
    with pytest.raises(TransferError, match=r"repair: '0\.weight' is '2\.weight' too, .*; untie them"):
        repair(tied, state, pool(a=state, b=state), x)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 1))
    state = dict(normed.state_dict())
    with pytest.raises(TransferError, match=r"repair: the weight of '0' is computed, no parameter"):
        repair(normed, state, pool(a=state, b=state), x)


def test_a_layer_under_two_names_is_corrected_under_both() -> None:
    body = nn.Linear(4, 4)
    net = nn.Sequential(body, nn.ReLU(), nn.Linear(4, 1))
    net[1].body = body
    a, b = ({n: torch.full_like(v, k) for n, v in net.state_dict().items()} for k in (1.0, -0.5))
    new = repair(net, average().apply(pool(a=a, b=b), {}), pool(a=a, b=b), torch.randn(20, 4))
    torch.testing.assert_close(new["0.weight"], torch.full((4, 4), 0.75))
    assert torch.equal(new["1.body.weight"], new["0.weight"])
    assert torch.equal(new["1.body.bias"], new["0.bias"])


def test_a_tensor_is_one_batch() -> None:
    soup = average().apply(BOTH, {})
    torch.testing.assert_close(repair(module(), soup, BOTH, X), repair(module(), soup, BOTH, [X]), rtol=0, atol=0)
    with pytest.raises(TransferError, match="repair: wanted batches, such as a list of tensors, got int"):
        repair(module(), soup, BOTH, 3)  # pyright: ignore[reportArgumentType]
