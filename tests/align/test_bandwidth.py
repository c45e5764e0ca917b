"""The median heuristic against SciPy's distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from torch import Tensor
from torch.func import grad, vmap

from ttransfer._errors import TransferError
from ttransfer.align._bandwidth import median_bandwidth
from ttransfer.align._mmd import mmd

SIZES = [(1, 1, 2), (2, 1, 3), (5, 9, 4), (7, 4, 1)]


def slow(source: Tensor, target: Tensor) -> float:
    lengths = pdist(torch.cat([source, target]).numpy())
    middle = (len(lengths) - 1) // 2
    return float(np.partition(lengths, middle)[middle])


@pytest.mark.parametrize("size", SIZES)
def test_value(size: tuple[int, int, int]) -> None:
    n, m, d = size
    source, target = torch.randn(n, d).double() + 10, torch.randn(m, d).double()
    assert median_bandwidth(source, target).item() == pytest.approx(slow(source, target), rel=1e-10)
    assert vmap(median_bandwidth)(source[None], target[None]).item() == pytest.approx(slow(source, target), rel=1e-10)


def test_in_a_loss() -> None:
    source, target = torch.randn(5, 3).double(), torch.randn(6, 3).double()
    width = slow(source, target)
    both = torch.compile(lambda s, t: mmd(s, t, bandwidth=median_bandwidth), backend="aot_eager", fullgraph=True)
    assert both(source, target).item() == pytest.approx(mmd(source, target, bandwidth=width).item(), rel=1e-10)
    held = grad(lambda s: mmd(s, target, bandwidth=width))(source)
    assert torch.allclose(grad(lambda s: mmd(s, target, bandwidth=median_bandwidth))(source), held, rtol=1e-9)


def test_rows_that_coincide() -> None:
    equal = torch.full((6, 2), 0.1)
    assert median_bandwidth(equal, equal) == 1
    source = torch.tensor([[0.1]] * 6 + [[1.1]])
    assert median_bandwidth(source[:3], source[3:]).item() == pytest.approx(math.sqrt(6 / 21), rel=1e-6)
    assert median_bandwidth(equal.bfloat16(), equal.bfloat16()).dtype == torch.bfloat16


def test_maps_are_refused() -> None:
    with pytest.raises(TransferError, match="median_bandwidth: wanted features"):
        median_bandwidth(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
