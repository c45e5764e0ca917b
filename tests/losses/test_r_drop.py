"""`r_drop` against slow loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

import ttransfer as tt
from tests.support.nets import mlp
from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._r_drop import r_drop
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow_r_drop(first: Tensor, second: Tensor) -> Tensor:
    total = torch.zeros((), dtype=first.dtype)
    for a, b in zip(first, second, strict=True):
        p, q = a.log_softmax(0), b.log_softmax(0)
        for i in range(len(p)):
            total = total + p[i].exp() * (p[i] - q[i]) / 2 + q[i].exp() * (q[i] - p[i]) / 2
    return total / len(first)


MAPS = (torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2))
TRIALS = (
    loss_trial(r_drop, (torch.randn(4, 3), torch.randn(4, 3)), reference=slow_r_drop),
    loss_trial(r_drop, MAPS, name="r_drop of maps", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4, 4)])
def test_it_is_kd_both_ways(shape: tuple[int, ...]) -> None:
    a, b = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = (kd(a, b, temperature=1.0) + kd(b, a, temperature=1.0)) / 2
    torch.testing.assert_close(r_drop(a, b), both, rtol=1e-12, atol=0)


def test_both_passes_learn() -> None:
    a, b = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert all(grad(r_drop, i)(a, b).count_nonzero() for i in (0, 1))


def test_two_passes_of_one_net_differ_by_their_dropout() -> None:
    def value(p: float) -> float:
        step = tt.step(
            {"student": tt.functional(mlp(0, p=p))},
            tt.optim.sgd(0.1),
            trainable=("student",),
            agree=tt.term(r_drop, "student(source)", "student(source)#2"),
        )
        batch = {"source": {"x": torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}}
        return step(step.init(batch), batch)[1]["agree"].item()

    assert value(0.0) == 0
    assert value(0.5) > 0


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"r_drop: wanted tensors of one shape"):
        r_drop(torch.zeros(4, 10), torch.zeros(4, 9))
