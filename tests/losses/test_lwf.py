"""`lwf` against slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from ttransfer._errors import TransferError
from ttransfer.losses import entropy, kd
from ttransfer.losses._lwf import lwf
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow_lwf(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher.detach(), strict=True):
        # The paper's own form: probabilities to the power 1 / T, brought to sum to 1.
        p, q = t.softmax(0) ** (1 / temperature), s.softmax(0) ** (1 / temperature)
        total = total - sum((a / p.sum() * (b / q.sum()).log() for a, b in zip(p, q, strict=True)), torch.tensor(0.0))
    return total / len(student)


TRIALS = (
    loss_trial(
        lwf,
        reference=slow_lwf,
        limits={"uniform": lambda fn: (fn(torch.zeros(2, 5).double(), torch.eye(2, 5).double()), math.log(5))},
    ),
    loss_trial(lwf, (torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2)), name="lwf of maps", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_it_is_kd_without_its_factor_and_with_the_teachers_entropy() -> None:
    s, t = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lwf(s, t), kd(s, t, temperature=2.0) / 4 + entropy(t / 2), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        grad(lwf)(s, t), grad(lambda x: kd(x, t, temperature=2.0))(s) / 4, rtol=1e-10, atol=1e-15
    )


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"lwf: wanted tensors of one shape"):
        lwf(torch.zeros(4, 10), torch.zeros(4, 9))
