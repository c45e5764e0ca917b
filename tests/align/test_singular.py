"""Singular values and vectors against torch's, and where torch's gradients are not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from ttransfer.align._singular import nuclear_norm, singular


def seen(u: Tensor, values: Tensor, v: Tensor) -> Tensor:
    """A number from vectors that does not see their signs, and moves with each of them."""
    weights = torch.arange(1, u.shape[1] + 1, dtype=u.dtype)
    numbers = torch.linspace(1, 2, u.shape[0] * v.shape[0], dtype=u.dtype).reshape(u.shape[0], v.shape[0])
    return ((u * weights) @ v.mT * numbers).sum() + (u.abs() * weights).sum() + (values * weights).sum()


def theirs(x: Tensor) -> Tensor:
    u, values, vh = torch.linalg.svd(x, full_matrices=False)
    return seen(u, values, vh.mT)


@pytest.mark.parametrize("shape", [(4, 3), (3, 5), (4, 4)])
def test_where_values_differ(shape: tuple[int, int]) -> None:
    x = torch.randn(2, *shape).double()
    for one in x:
        assert torch.allclose(seen(*singular(one)), theirs(one), rtol=1e-10)
        assert torch.allclose(grad(lambda x: seen(*singular(x)))(one), grad(theirs)(one), rtol=1e-8)
        assert torch.allclose(grad(nuclear_norm)(one), grad(lambda x: torch.linalg.norm(x, "nuc"))(one), rtol=1e-8)


def test_modes() -> None:
    x = torch.randn(2, 4, 3).double()
    many = torch.compile(vmap(grad(lambda x: seen(*singular(x)))), backend="aot_eager", fullgraph=True)
    assert torch.allclose(many(x)[1], grad(theirs)(x[1]), rtol=1e-8)


CASES = {
    "repeated": torch.eye(4)[:, :3],
    "zeros": torch.zeros(3, 2),
    "one row three times": torch.tensor([[1.0, 2.0, 3.0]]).expand(3, 3),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_they_do_not(case: str, dtype: torch.dtype) -> None:
    x = CASES[case].to(dtype)
    assert grad(lambda x: seen(*singular(x)))(x).isfinite().all()
    assert grad(nuclear_norm)(x).isfinite().all()
    u, values, v = singular(x)
    assert torch.allclose(u * values @ v.mT, x, atol=1e-6)
    if case != "zeros":
        assert not grad(theirs)(x).abs().max() < 1e5  # not finite, or rounding by rounding
