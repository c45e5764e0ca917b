"""LoRA against the two-branch form of the paper: W x + (alpha / r) B (A x)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from ttransfer._errors import TransferError
from ttransfer.adapters import lora
from ttransfer.core._types import Params

ALPHAS = [(2, None, 1.0), (2, 4.0, 2.0), (8, 4.0, 0.5)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def base(dtype: torch.dtype = torch.float64) -> Params:
    shapes = {
        "conv.weight": (6, 3, 3, 2),
        "conv.bias": (6,),
        "fc.weight": (4, 5),
        "fc.bias": (4,),
        "norm.weight": (5,),
        "steps": (),
    }
    generator = seeded(1)
    params = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return {**params, "steps": torch.tensor(3)}


def moved(delta: Params) -> Params:
    """Leave the start, where b is 0."""
    generator = seeded(2)
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in delta.items()}


@pytest.mark.parametrize(("rank", "alpha", "scale"), ALPHAS)
def test_linear(rank: int, alpha: float | None, scale: float) -> None:
    adapt, params, x = lora("fc.*", rank=rank, alpha=alpha), base(), torch.randn(7, 5, dtype=torch.float64)
    delta = moved(adapt.init(seeded(), params))
    a, b = delta["fc.weight.lora_a"], delta["fc.weight.lora_b"]
    expected = x @ params["fc.weight"].T + scale * ((x @ a.T) @ b.T)
    got = x @ adapt.apply(params, delta)["fc.weight"].T
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("rank", "alpha", "scale"), ALPHAS)
def test_convolution(rank: int, alpha: float | None, scale: float) -> None:
    adapt, params = lora("conv.*", rank=rank, alpha=alpha), base()
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    delta = moved(adapt.init(seeded(), params))
    down, up = delta["conv.weight.lora_a"].reshape(rank, 3, 3, 2), delta["conv.weight.lora_b"][:, :, None, None]
    expected = F.conv2d(x, params["conv.weight"]) + scale * F.conv2d(F.conv2d(x, down), up)
    got = F.conv2d(x, adapt.apply(params, delta)["conv.weight"])
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def test_only_the_matching_weights_change() -> None:
    adapt, params = lora("fc.*|norm.*"), base()
    delta = moved(adapt.init(seeded(), params))
    assert list(delta) == ["fc.weight.lora_a", "fc.weight.lora_b"]
    new = adapt.apply(params, delta)
    assert list(new) == list(params)
    assert [name for name in params if new[name] is not params[name]] == ["fc.weight"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_start_is_the_identity(dtype: torch.dtype) -> None:
    adapt, params = lora(".*", rank=3), base(dtype)
    delta = adapt.init(seeded(), params)
    new = adapt.apply(params, delta)
    torch.testing.assert_close(new, params, rtol=0, atol=0)
    assert {p.dtype for p in delta.values()} == {torch.promote_types(dtype, torch.float32)}
    for name, p in delta.items():
        if name.endswith("lora_a"):
            assert 0 < p.abs().max() <= 1 / math.sqrt(p.shape[1])
        else:
            assert p.count_nonzero() == 0


def test_init_follows_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (lora(".*").init(seeded(seed), base()) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["fc.weight.lora_a"], other["fc.weight.lora_a"])


def test_gradient_goes_to_b_first() -> None:
    adapt, params, x = lora("fc.*", rank=2), base(), torch.randn(7, 5, dtype=torch.float64)

    def loss(delta: Params) -> Tensor:
        return (x @ adapt.apply(params, delta)["fc.weight"].T).square().sum()

    delta = adapt.init(seeded(), params)
    slope = grad(loss)(delta)
    assert slope["fc.weight.lora_a"].count_nonzero() == 0  # b is 0
    assert slope["fc.weight.lora_b"].count_nonzero() > 0
    assert not adapt.trains_base
    names, values = zip(*moved(delta).items(), strict=True)
    assert torch.autograd.gradcheck(
        lambda *v: loss(dict(zip(names, v, strict=True))), tuple(v.requires_grad_() for v in values), atol=1e-6
    )


def test_modes_agree() -> None:
    adapt, params = lora(".*weight", rank=2, alpha=3.0), base()
    members = [moved(adapt.init(seeded(), params)), adapt.init(seeded(3), params)]

    def loss(delta: Params) -> Tensor:
        new = adapt.apply(params, delta)
        return new["fc.weight"].square().sum() + new["conv.weight"].sin().sum()

    slope = grad(loss)
    stacked = {k: torch.stack([m[k] for m in members]) for k in members[0]}
    torch.compiler.reset()
    compiled = torch.compile(slope, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(members[0]), slope(members[0]), rtol=1e-12, atol=1e-14)
    mapped = torch.compile(vmap(slope), backend="aot_eager", fullgraph=True)(stacked)
    for i, member in enumerate(members):
        torch.testing.assert_close({k: v[i] for k, v in mapped.items()}, slope(member), rtol=1e-12, atol=1e-14)


def test_alpha_is_differentiable() -> None:
    params, delta = base(), moved(lora("fc.*", rank=2).init(seeded(), base()))
    low_rank = delta["fc.weight.lora_b"] @ delta["fc.weight.lora_a"]
    slope = grad(lambda alpha: lora("fc.*", rank=2, alpha=alpha).apply(params, delta)["fc.weight"].sum())
    assert torch.allclose(slope(torch.tensor(4.0, dtype=torch.float64)), low_rank.sum() / 2, rtol=1e-12)


def test_mistakes_are_named() -> None:
    with pytest.raises(TransferError, match="lora: wanted a rank of at least 1, got 0"):
        lora(".*", rank=0)
    with pytest.raises(TransferError, match=r"'fc.wieght' matches none of 6 names; did you mean 'fc.weight'"):
        lora("fc.wieght").init(seeded(), base())
    with pytest.raises(TransferError, match=r"'.*bias' matches 2 parameters, none with two axes .*'conv.bias' \(6,\)"):
        lora(".*bias").init(seeded(), base())
    delta = lora("fc.*").init(seeded(), base())
    with pytest.raises(TransferError, match=r"'fc.weight.lora_a' belongs to no parameter; did you mean 'conv.weight'"):
        lora("fc.*").apply({"conv.weight": torch.ones(2, 2)}, delta)
