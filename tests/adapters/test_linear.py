"""Linear adapters against `torch.nn`'s own layers, which draw the same numbers from the same seed."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ttransfer._errors import TransferError
from ttransfer.adapters import linear, mlp
from ttransfer.core._maps import Adapter
from ttransfer.core._types import Params

FEATURES = [(4, 5), (1, 5), (3, 6, 5)]


def like(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sequential(d: int, *widths: int) -> nn.Sequential:
    """Build the layers that `mlp` stands for, from the seed that `seeded` has."""
    torch.manual_seed(7)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((d, *widths)):
        layers += [nn.ReLU()] * bool(layers) + [nn.Linear(fan_in, fan_out)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", FEATURES)
def test_linear_is_nn_linear(shape: tuple[int, ...], bias: bool) -> None:
    adapter = linear(3, bias=bias)
    params = adapter.init(seeded(), like(*shape))
    torch.manual_seed(7)
    layer = nn.Linear(5, 3, bias=bias)
    torch.testing.assert_close(params, dict(layer.state_dict()), rtol=0, atol=0)
    x = torch.randn(shape)
    torch.testing.assert_close(adapter.apply(params, x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 4)])
@pytest.mark.parametrize("out", [1, 3])
@pytest.mark.parametrize("shape", FEATURES)
def test_mlp_is_nn_sequential(shape: tuple[int, ...], hidden: tuple[int, ...], out: int) -> None:
    adapter = mlp(*hidden, out=out)
    params = adapter.init(seeded(), like(*shape))
    layers = sequential(5, *hidden, out)
    torch.testing.assert_close(params, dict(layers.state_dict()), rtol=0, atol=0)
    x = torch.randn(shape)
    torch.testing.assert_close(adapter.apply(params, x), layers(x), rtol=0, atol=0)


def test_mlp_ends_in_one_logit() -> None:
    assert mlp(8).apply(mlp(8).init(seeded(), like(4, 5)), torch.ones(4, 5)).shape == (4, 1)


ADAPTERS = [linear(3), mlp(8), mlp(8, 4, out=2)]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_parameters_are_float32_at_least(adapter: Adapter, dtype: torch.dtype) -> None:
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    params = adapter.init(seeded(), like(4, 5, dtype=dtype))
    assert {p.dtype for p in params.values()} == {wanted}
    assert not any(p.requires_grad or p.is_meta for p in params.values())


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_init_follows_the_generator_alone(adapter: Adapter) -> None:
    before = torch.get_rng_state()
    first, again, other = (adapter.init(seeded(seed), like(4, 5)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_modes_agree(adapter: Adapter) -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    members = [adapter.init(seeded(seed), like(4, 5, dtype=torch.float64)) for seed in (1, 2)]

    def loss(params: Params, x: Tensor) -> Tensor:
        return adapter.apply(params, x).square().sum()

    slope = grad(loss)
    torch.compiler.reset()
    compiled = torch.compile(slope, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(members[0], x), slope(members[0], x), rtol=1e-12, atol=1e-14)
    stacked = {k: torch.stack([m[k] for m in members]) for k in members[0]}
    mapped = vmap(slope, (0, None))(stacked, x)
    for i, member in enumerate(members):
        torch.testing.assert_close({k: v[i] for k, v in mapped.items()}, slope(member, x), rtol=1e-12, atol=1e-14)


def test_gradient_is_autograds() -> None:
    adapter, layers = mlp(8, 4, out=2), sequential(5, 8, 4, 2).double()
    x, params = torch.randn(4, 5, dtype=torch.float64), dict(layers.state_dict())
    slope = grad(lambda p: adapter.apply(p, x).square().sum())(params)
    functional_call(layers, dict(layers.named_parameters()), x).square().sum().backward()
    torch.testing.assert_close(slope, {k: p.grad for k, p in layers.named_parameters()}, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("called", "adapter"), [("linear", linear(3)), ("mlp", mlp(8))])
def test_features_that_are_refused(called: str, adapter: Adapter) -> None:
    params = adapter.init(seeded(), like(4, 5))
    wanted = rf"{called}: wanted a feature \(n, d\) or \(n, tokens, d\)"
    for x in (like(4, 5, 7, 7), like(4, 5, 2, 7, 7)):
        with pytest.raises(TransferError, match=wanted + r".*got \(4, 5, .*7\) float32; .*pools a map"):
            adapter.init(seeded(), x)
        with pytest.raises(TransferError, match="pools a map"):
            adapter.apply(params, x)
    with pytest.raises(TransferError, match=wanted + r" of floating numbers, got \(5,\) float32"):
        adapter.init(seeded(), like(5))
    with pytest.raises(TransferError, match=wanted + r" of floating numbers, got \(4, 5\) int64"):
        adapter.init(seeded(), like(4, 5, dtype=torch.int64))
    with pytest.raises(TransferError, match=rf"{called}: wanted d = 5, as at init, got \(4, 6\) float32"):
        adapter.apply(params, torch.ones(4, 6))


def test_cures_in_the_message_work() -> None:
    x = torch.randn(4, 5, 7, 7)
    for cured, shape in ((x.mean((-2, -1)), (4, 3)), (x.flatten(2).mT, (4, 49, 3))):
        adapter = linear(3)
        assert adapter.apply(adapter.init(seeded(), cured.to("meta")), cured).shape == shape


def test_widths_that_are_refused() -> None:
    with pytest.raises(TransferError, match=r"linear: wanted widths of at least 1, got \(0,\)"):
        linear(0)
    with pytest.raises(TransferError, match=r"mlp: wanted widths of at least 1, got \(-8, 1\)"):
        mlp(-8)
