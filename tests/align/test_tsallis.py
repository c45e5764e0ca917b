"""`tsallis` and `tsallis_balanced` against loops and their limits."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.steps import refused
from ttransfer._numeric import entropies
from ttransfer.align._tsallis import tsallis, tsallis_balanced
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(logits: Tensor, alpha: float = 1.9, temperature: float = 1.0) -> Tensor:
    total = logits.new_zeros(())
    for z in logits:
        p = (z / temperature).softmax(0)
        total = total + (1 - sum(x**alpha for x in p)) / (alpha - 1)
    return total / len(logits)


def slow_balanced(logits: Tensor, alpha: float = 1.9, temperature: float = 2.0, eps: float = 0.0) -> Tensor:
    """The sum of the authors' code."""
    n, p = len(logits), (logits / temperature).softmax(1)
    entropy = [-sum(float(x) * float((x + eps).log()) for x in row) for row in p]
    weights = [1 + torch.tensor(-h).double().exp() for h in entropy]
    weights = [n * w / sum(weights) for w in weights]
    sums = [sum(w * row[c] for w, row in zip(weights, p, strict=True)) for c in range(p.shape[1])]
    total = logits.new_zeros(())
    for w, row in zip(weights, p, strict=True):
        inner = sum(row[c] ** alpha / sums[c] * w for c in range(p.shape[1]))
        total = total + 1 / (sum(sums) / len(sums)) - inner
    return total / (alpha - 1)


TRIALS = (
    loss_trial(
        tsallis,
        torch.randn(4, 3),
        reference=slow,
        limits={"sure": lambda fn: (fn(torch.tensor([[0.0, 1e3]])), 0)},
        examples=4,
    ),
    loss_trial(
        tsallis_balanced,
        torch.randn(4, 3),
        reference=slow_balanced,
        limits={"sure": lambda fn: (fn(torch.tensor([[0.0, 1e4], [1e4, 0.0]])), 0)},
        expected_failed_checks={"gradcheck": "the weights of the rows are held constant"},
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.0 + 1e-9, 2.0])
def test_known_alphas(alpha: float) -> None:
    logits = torch.randn(5, 4, dtype=torch.float64)
    value = tsallis(logits, alpha=alpha, temperature=1.5)
    if abs(alpha - 1) < 1e-6:
        torch.testing.assert_close(value, entropies(logits / 1.5).mean(), rtol=1e-8, atol=0)
    else:
        torch.testing.assert_close(value, slow(logits, alpha, 1.5), rtol=1e-12, atol=0)
    slope = torch.func.grad(lambda a: tsallis(logits, alpha=a))(torch.tensor(alpha, dtype=torch.float64))
    assert slope.isfinite()


def test_the_authors_logarithm() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(tsallis_balanced(logits), slow_balanced(logits, eps=1e-5), rtol=1e-5, atol=0)


def test_a_class_that_no_row_has() -> None:
    logits = torch.tensor([[3000.0, 0.0, 2999.0], [2999.0, 0.0, 3000.0]])
    slopes, value = torch.func.grad_and_value(functools.partial(tsallis_balanced, temperature=1.0))(logits)
    assert value.isfinite()
    assert slopes.isfinite().all()
    assert not slow_balanced(logits, temperature=1.0).isfinite()


def test_what_is_refused() -> None:
    refused(lambda: tsallis(torch.zeros(3)), "tsallis: wanted logits")
    refused(lambda: tsallis_balanced(torch.zeros(3)), "tsallis_balanced: wanted logits")
