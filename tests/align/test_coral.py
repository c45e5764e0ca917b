"""`coral` against the paper's formula in slow loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap
from torch.utils._pytree import tree_map

from ttransfer._claims import claims_of
from ttransfer.align import coral

SIZES = [(2, 2, 1), (6, 6, 3), (5, 9, 4), (7, 3, 12)]


def pair(n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return source, 2 * torch.randn(m, d, dtype=torch.float64, generator=generator) + 1


def slow(source: Tensor, target: Tensor) -> float:
    """The paper's covariance, D'D - (1'D)'(1'D) / n, entry by entry."""

    def covariance(data: np.ndarray, i: int, j: int) -> float:
        n = len(data)
        products = sum(row[i] * row[j] for row in data)
        return (products - sum(row[i] for row in data) * sum(row[j] for row in data) / n) / (n - 1)

    s, t, d = source.numpy(), target.numpy(), source.shape[1]
    return sum((covariance(s, i, j) - covariance(t, i, j)) ** 2 for i in range(d) for j in range(d)) / (4 * d**2)


@pytest.mark.parametrize("size", SIZES)
def test_value(size: tuple[int, int, int]) -> None:
    assert coral(*pair(*size)).item() == pytest.approx(slow(*pair(*size)), rel=1e-11)


Fn = Callable[..., Any]


def compiled(fn: Fn) -> Fn:
    torch.compiler.reset()
    return torch.compile(fn, backend="aot_eager", fullgraph=True)


def mapped(fn: Fn) -> Fn:
    return lambda *xs: tree_map(lambda y: y[0], vmap(fn)(*(torch.stack([x, 2 * x]) for x in xs)))


MODES: dict[str, Callable[[Fn], Fn]] = {
    "compiled": compiled,
    "vmapped": mapped,
    "compiled vmapped": lambda fn: compiled(mapped(fn)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_modes_agree(mode: str, size: tuple[int, int, int]) -> None:
    both = grad_and_value(coral, argnums=(0, 1))
    torch.testing.assert_close(MODES[mode](both)(*pair(*size)), both(*pair(*size)), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("size", SIZES)
def test_gradient(size: tuple[int, int, int]) -> None:
    assert torch.autograd.gradcheck(coral, tuple(x.requires_grad_() for x in pair(*size)), atol=1e-7)


def test_laws() -> None:
    s, t = pair(5, 9, 4)
    value = coral(s, t)
    assert torch.allclose(coral(t, s), value, rtol=1e-12)
    assert torch.allclose(coral(s.flip(0), t[torch.randperm(9)]), value, rtol=1e-12)
    assert torch.allclose(coral(s + 5, t - 7), value, rtol=1e-10)  # means are free
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    assert torch.allclose(coral(s @ rotation, t @ rotation), value, rtol=1e-12)
    assert torch.allclose(coral(3 * s, 3 * t), 81 * value, rtol=1e-12)
    assert coral(s, s).item() == 0
    assert grad(coral)(s, s).count_nonzero() == 0
    assert claims_of(coral).coupled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_and_collapsed_rows_are_finite(dtype: torch.dtype) -> None:
    large = torch.tensor([[1e3, -1e3], [-1e3, 1e3], [0.0, 1e3]], dtype=dtype)
    collapsed = torch.full((4, 2), 0.1, dtype=dtype)
    for s, t in ((large, collapsed), (collapsed, large), (collapsed, collapsed)):
        assert coral(s, t).dtype == dtype
        assert coral(s, t).isfinite()
        assert grad(coral)(s, t).isfinite().all()


def test_half_precision_sums_in_float32() -> None:
    s, t = (x.bfloat16() for x in pair(64, 96, 8))
    assert coral(s, t).item() == pytest.approx(slow(s.double(), t.double()), rel=4e-3)
