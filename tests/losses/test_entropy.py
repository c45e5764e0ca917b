"""`entropy` against slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from ttransfer._claims import claims_of
from ttransfer._errors import TransferError
from ttransfer.losses import entropy

SHAPES = [(1, 2), (5, 7), (4, 3, 6), (2, 5, 3, 2)]


def logits(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


def slow(z: Tensor) -> float:
    rows = np.moveaxis(z.numpy(), 1, -1).reshape(-1, z.shape[1]).tolist()
    total = 0.0
    for row in rows:
        odds = [math.exp(value) for value in row]
        total -= sum(o / sum(odds) * math.log(o / sum(odds)) for o in odds)
    return total / len(rows)


@pytest.mark.parametrize("shape", SHAPES)
def test_value(shape: tuple[int, ...]) -> None:
    assert entropy(logits(shape)).item() == pytest.approx(slow(logits(shape)), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_modes_agree(shape: tuple[int, ...]) -> None:
    z = logits(shape)
    assert torch.autograd.gradcheck(entropy, z.clone().requires_grad_(), atol=1e-8)
    both = grad_and_value(entropy)
    torch.compiler.reset()
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(z), both(z), rtol=1e-12, atol=1e-15)
    assert vmap(entropy)(torch.stack([z, 2 * z])).tolist() == pytest.approx([slow(z), slow(2 * z)], rel=1e-11)


def test_bounds() -> None:
    uniform = torch.zeros(3, 5, dtype=torch.float64)
    assert entropy(uniform).item() == pytest.approx(math.log(5), rel=1e-12)
    assert grad(entropy)(uniform).abs().max() < 1e-15
    assert entropy(torch.tensor([[1e3, 0.0, 0.0]], dtype=torch.float64)).item() == 0


def test_invariances() -> None:
    z = logits((5, 7))
    assert torch.allclose(entropy(z + torch.arange(5)[:, None]), entropy(z), rtol=1e-12)
    assert torch.allclose(entropy(z[torch.tensor([3, 1, 4, 0, 2])].flip(1)), entropy(z), rtol=1e-12)


def test_claims_a_mean_over_rows() -> None:
    z = logits((5, 7, 2))
    assert not claims_of(entropy).coupled
    assert torch.allclose((2 * entropy(z[:2]) + 3 * entropy(z[2:])) / 5, entropy(z), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_confident_logits_are_finite(dtype: torch.dtype) -> None:
    z = torch.tensor([[1e3, -1e3, 0.0], [0.0, 0.0, 1e3]], dtype=dtype)
    assert entropy(z).item() == 0
    assert entropy(z).dtype == dtype
    assert grad(entropy)(z).isfinite().all()


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"entropy: wanted logits .* got logits \(4,\) float32"):
        entropy(torch.zeros(4))
