"""`cmd` against SciPy's central moments and a loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.func import grad

from tests.support.games import normal
from tests.support.steps import refused
from ttransfer.align._cmd import cmd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(source: Tensor, target: Tensor) -> Tensor:
    def moment(rows: Tensor, k: int, j: int) -> Tensor:
        column = [row[j] for row in rows]
        mean = torch.stack(column).sum() / len(rows)
        return torch.stack([(x - mean) ** k for x in column]).sum() / len(rows) if k > 1 else mean

    total = source.new_zeros(())
    for k in range(1, 6):
        squares = [(moment(source, k, j) - moment(target, k, j)) ** 2 for j in range(source.shape[1])]
        # The root has no slope at 0.
        size = torch.stack(squares).sum()
        total = total + (size.sqrt() if size > 0 else 0 * size)
    return total


TRIALS = (loss_trial(cmd, (torch.randn(4, 3), torch.randn(5, 3)), reference=slow, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("moments", [1, 2, 7])
@pytest.mark.parametrize("span", [1.0, 2.0, 0.3])
def test_beside_scipy(moments: int, span: float) -> None:
    s, t = normal(0, 7, 3).tanh(), normal(1, 4, 3).sigmoid()
    total = ((s.mean(0) - t.mean(0)) / span).norm()
    for k in range(2, moments + 1):
        one, other = (torch.as_tensor(stats.moment(x.numpy(), k, axis=0)) for x in (s, t))
        total = total + (one - other).norm() / span**k
    torch.testing.assert_close(cmd(s, t, moments=moments, span=span), total, rtol=1e-9, atol=0)


def test_a_span_is_a_unit() -> None:
    s, t = normal(0, 7, 3), normal(1, 4, 3)
    torch.testing.assert_close(cmd(2 * s, 2 * t, span=torch.tensor(2.0)), cmd(s, t), rtol=1e-9, atol=0)


def test_the_gradient_does_not_fade_and_is_0_where_both_are_one() -> None:
    s = normal(0, 6, 3)
    near, far = (grad(cmd)(s + by, s).norm() for by in (1e-6, 1.0))
    assert near > 0.5 * far
    assert grad(cmd)(s, s).count_nonzero() == 0


def test_what_is_refused() -> None:
    s, t = torch.randn(4, 3), torch.randn(5, 3)
    refused(lambda: cmd(s, t, moments=0), "cmd: wanted a whole number of at least 1 for moments", "got 0")
    refused(lambda: cmd(s, t, span=0.0), "cmd: wanted a number above 0 for span", "got 0.0")
