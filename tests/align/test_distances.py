"""Distances between rows, against loops, and where rows coincide."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

from ttransfer.align._distances import distances, squared_distances


def test_loops() -> None:
    x, y = torch.randn(4, 3).double(), torch.randn(6, 3).double() + 100
    slow = torch.stack([torch.stack([((a - b) ** 2).sum() for b in y]) for a in x])
    assert torch.allclose(squared_distances(x, y), slow, rtol=1e-10)
    assert torch.allclose(distances(x, y), slow.sqrt(), rtol=1e-10)
    assert torch.allclose(vmap(distances)(torch.stack([x, y[:4]]), torch.stack([y, y]))[0], slow.sqrt(), rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_coincide(dtype: torch.dtype) -> None:
    x = torch.randn(5, 8, dtype=dtype)
    assert squared_distances(x, x).diagonal().min() >= 0
    assert distances(x, x).diagonal().count_nonzero() == 0
    equal = torch.full((3, 8), 0.1, dtype=dtype)
    assert grad(lambda x: distances(x, equal).sum())(equal).count_nonzero() == 0
