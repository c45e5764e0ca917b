"""The domain loss against slow loops, and the reversal of gradients in every mode."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vmap

import ttransfer as tt
from ttransfer._claims import claims_of
from ttransfer._errors import TransferError
from ttransfer.align import domain_adversarial, gradient_reversal

SHAPES = [((5,), (3,)), ((5, 1), (3, 1)), ((2, 4, 1), (3, 4, 1)), ((2, 1, 3, 3), (3, 1, 2, 2))]


def logits(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(shape, dtype=torch.float64, generator=generator) * 3 for shape in shapes)
    return source, target


def slow(source: Tensor, target: Tensor) -> float:
    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    ones = [-math.log(sigmoid(z)) for z in source.flatten().tolist()]
    zeros = [-math.log(1 - sigmoid(z)) for z in target.flatten().tolist()]
    return 0.5 * (sum(ones) / len(ones) + sum(zeros) / len(zeros))


@pytest.mark.parametrize("shapes", SHAPES)
def test_domain_loss(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    pair = logits(shapes)
    assert domain_adversarial(*pair).item() == pytest.approx(slow(*pair), rel=1e-11)
    both = grad_and_value(domain_adversarial, argnums=(0, 1))
    torch.compiler.reset()
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*pair), both(*pair), rtol=1e-12, atol=1e-15)
    mapped = vmap(domain_adversarial)(*(torch.stack([x, 2 * x]) for x in pair))
    assert mapped.tolist() == pytest.approx([slow(*pair), slow(*(2 * x for x in pair))], rel=1e-11)
    assert torch.autograd.gradcheck(domain_adversarial, tuple(x.requires_grad_() for x in pair), atol=1e-8)


def test_domain_loss_swaps_with_the_sign() -> None:
    source, target = logits(((5, 1), (3, 1)))
    assert torch.allclose(domain_adversarial(source, target), domain_adversarial(-target, -source), rtol=1e-12)
    assert domain_adversarial(source + 50, target - 50).item() < 1e-15
    assert domain_adversarial(0 * source, 0 * target).item() == pytest.approx(math.log(2), rel=1e-15)


def test_domains_weigh_the_same_whatever_their_share() -> None:
    source, target = logits(((5, 1), (3, 1)))
    assert torch.allclose(domain_adversarial(source, target.repeat(4, 1)), domain_adversarial(source, target))
    assert claims_of(domain_adversarial).coupled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confident_logits_are_finite(dtype: torch.dtype) -> None:
    z = torch.tensor([[1e3], [-1e3]], dtype=dtype)
    assert domain_adversarial(z, z).item() == pytest.approx(500, rel=1e-2)
    assert domain_adversarial(z, z).dtype == dtype
    assert grad(domain_adversarial)(z, z).isfinite().all()


@pytest.mark.parametrize("shape", [(), (4, 2), (4, 2, 3, 3)])
def test_more_than_one_logit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TransferError, match="domain_adversarial: wanted one logit per item") as error:
        domain_adversarial(torch.zeros(4, 1), torch.zeros(shape))
    assert f"source (4, 1) float32 and target {shape} float32" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # torch's own, from within jvp
def test_reversal(dtype: torch.dtype, scale: float, kind: type) -> None:
    x = torch.tensor([0.1, -3.0, 1e3], dtype=dtype)
    factor = kind(scale)

    def through(x: Tensor) -> Tensor:
        return (gradient_reversal(x, factor) * torch.arange(3, dtype=dtype)).sum()

    assert torch.equal(gradient_reversal(x, factor), x)
    torch.compiler.reset()
    expected = -scale * torch.arange(3, dtype=dtype)
    for fn in (grad(through), torch.compile(grad(through), backend="aot_eager", fullgraph=True)):
        assert torch.equal(fn(x), expected)
        assert fn(x).dtype == dtype
    assert torch.equal(jvp(through, (x,), (torch.ones_like(x),))[1], expected.sum())


def test_reversal_maps_over_rows_and_scales() -> None:
    x, scales = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0], dtype=torch.float64)
    torch.compiler.reset()
    slope = grad(lambda x, scale: gradient_reversal(x, scale) * 7)
    for fn in (vmap(slope), torch.compile(vmap(slope), backend="aot_eager", fullgraph=True)):
        assert fn(x, scales).tolist() == [-3.5, -21.0]
    assert vmap(gradient_reversal)(x, scales).dtype == torch.float32


def test_games_with_parameters_are_found_among_the_terms() -> None:
    align: Any = tt.align
    for name in vars(align)["_TERMS"]:
        assert hasattr(tt.terms, name)
        assert not hasattr(align, name)
    with pytest.raises(AttributeError, match=r"no attribute 'dann'; it is a ready term: tt\.terms\.dann"):
        _ = align.dann
    with pytest.raises(AttributeError, match="no attribute 'corall'; did you mean 'coral'"):
        _ = align.corall
