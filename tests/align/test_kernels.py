"""Widths and kernels against the plain formulas."""

from __future__ import annotations

import itertools

import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.align._kernels import gram, lifted, mean_square, off_diagonal_mean, squared_width


def test_mean_square() -> None:
    rows = torch.randn(6, 3).double() + 50
    pairs = [((a - b) ** 2).sum() for a, b in itertools.combinations(rows, 2)]
    assert torch.allclose(mean_square(rows), torch.stack(pairs).mean(), rtol=1e-10)
    assert mean_square(torch.full((3, 4), 0.1)) == 1
    assert mean_square(rows[:1]) == 1


def test_width() -> None:
    source, target = torch.randn(4, 3), torch.randn(5, 3)
    assert squared_width("x", source, target, 3.0, (1.0,)) == 9
    assert squared_width("x", source, target, lambda s, t: s[0, 0], (1.0,)) == source[0, 0] ** 2
    assert squared_width("x", source, target, None, (1.0,)) == mean_square(torch.cat([source, target]))
    with pytest.raises(TransferError, match=r"x: wanted at least one scale, got \(\)"):
        squared_width("x", source, target, None, ())


def test_gram() -> None:
    x, y = torch.randn(3, 2).double(), torch.randn(4, 2).double()
    slow = [[sum((-((a - b) ** 2).sum() / (2 * c * 1.5)).exp() for c in (0.5, 2.0)) for b in y] for a in x]
    assert torch.allclose(gram(x, y, 1.5, (0.5, 2.0)), torch.tensor(slow).double(), rtol=1e-12)
    square = gram(x, x, 1.5, (0.5, 2.0))
    assert torch.allclose(off_diagonal_mean(square), square[~torch.eye(3, dtype=torch.bool)].mean(), rtol=1e-12)


def test_lifted() -> None:
    value = torch.tensor([-1e-8, 2.0], requires_grad=True)
    assert lifted(value).tolist() == [0, 2]
    assert torch.autograd.grad(lifted(value).sum(), value)[0].tolist() == [1, 1]
