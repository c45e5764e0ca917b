"""`coral` and `coral_mean` against the formulas in slow loops, and other packages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, theirs
from ttransfer.align._coral import coral, coral_mean
from ttransfer.testing import loss_trial, parametrize_with_checks


def covariance(data: Tensor, i: int, j: int) -> Tensor:
    """The paper's, D'D - (1'D)'(1'D) / n, one entry of it."""
    n = len(data)
    products = torch.stack([row[i] * row[j] for row in data]).sum()
    one, other = (torch.stack([row[k] for row in data]).sum() for k in (i, j))
    return (products - one * other / n) / (n - 1)


def gaps(source: Tensor, target: Tensor) -> Tensor:
    d = source.shape[1]
    pairs = [(i, j) for i in range(d) for j in range(d)]
    return torch.stack([(covariance(source, i, j) - covariance(target, i, j)) ** 2 for i, j in pairs]).sum() / d**2


def slow(source: Tensor, target: Tensor) -> Tensor:
    return gaps(source, target) / 4


def slow_mean(source: Tensor, target: Tensor) -> Tensor:
    columns = range(source.shape[1])
    means = [(sum(source[:, i]) / len(source) - sum(target[:, i]) / len(target)) ** 2 for i in columns]
    return gaps(source, target) + sum(means) / len(means)


TRIALS = (
    loss_trial(coral, reference=slow, examples=4),
    loss_trial(coral_mean, reference=slow_mean, examples=4),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("size", [(2, 2, 1), (6, 6, 3), (5, 9, 4), (7, 3, 12)])
def test_beside_others(size: tuple[int, int, int]) -> None:
    n, m, d = size
    s, t = torch.randn(n, d), 2 * torch.randn(m, d) + 1
    other = theirs("pytorch_adapt.layers", "CORALLoss")
    same(coral, other, s, t)
    same(lambda s, t: coral_mean(s, t) - (s.mean(0) - t.mean(0)).square().mean(), lambda s, t: 4 * other(s, t), s, t)
    if d > 1:
        same(coral, lambda s, t: theirs("skada.deep.losses", "deepcoral_loss", s, t), s, t)


def test_means_are_free_for_one_of_them() -> None:
    s, t = torch.randn(5, 4).double(), torch.randn(9, 4).double()
    assert torch.allclose(coral(s + 5, t - 7), coral(s, t), rtol=1e-10)
    assert torch.allclose(coral(3 * s, 3 * t), 81 * coral(s, t), rtol=1e-12)
    assert torch.allclose(coral_mean(s + 5, s), torch.tensor(25.0).double(), rtol=1e-10)


def test_half_precision_sums_in_float32() -> None:
    s, t = torch.randn(64, 8).bfloat16(), (2 * torch.randn(96, 8) + 1).bfloat16()
    assert coral(s, t).item() == pytest.approx(slow(s.double(), t.double()).item(), rel=4e-3)
