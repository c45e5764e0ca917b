"""`patient_kd` against the formula in slow loops."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ttransfer._errors import TransferError
from ttransfer.losses._patient_kd import patient_kd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, variant: str = "paper") -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for layers, others in zip(student, teacher.detach(), strict=True):
        for s, t in zip(layers, others, strict=True):
            total = total + sum((a - b) ** 2 for a, b in zip(s / s.norm(), t / t.norm(), strict=True))
    return total / (len(student) if variant == "paper" else student.numel())


STATES = (torch.randn(4, 2, 3), torch.randn(4, 2, 3))
TRIALS = (
    loss_trial(patient_kd, STATES, reference=slow, examples=8),
    loss_trial(
        functools.partial(patient_kd, variant="code"),
        STATES,
        reference=functools.partial(slow, variant="code"),
        name="patient_kd of the code",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_the_authors_formula() -> None:
    student, teacher = torch.randn(6, 5, 32), torch.randn(6, 5, 32)
    wanted = F.mse_loss(F.normalize(student, dim=2), F.normalize(teacher, dim=2))
    torch.testing.assert_close(patient_kd(student, teacher, variant="code"), wanted)
    torch.testing.assert_close(patient_kd(student, teacher), wanted * 5 * 32)


def test_layers_may_come_as_a_list() -> None:
    torch.testing.assert_close(patient_kd(*(list(x.unbind(1)) for x in STATES)), patient_kd(*STATES))


def test_what_is_refused() -> None:
    with pytest.raises(TransferError, match=r"patient_kd: wanted states \(n, d\) of at least one layer, got none"):
        patient_kd([], [])
    with pytest.raises(TransferError, match=r"patient_kd: wanted states \(n, d\) of at least one layer"):
        patient_kd(list(STATES), list(STATES))
    with pytest.raises(TransferError, match=r"patient_kd: wanted states \(n, layers, d\)"):
        patient_kd(torch.zeros(4, 2, 3, 3), torch.zeros(4, 2, 3, 3))
    with pytest.raises(TransferError, match="patient_kd: wanted tensors of one shape"):
        patient_kd(STATES[0], STATES[1][:, :1])
    with pytest.raises(TransferError, match="patient_kd: wanted variant 'paper' or 'code', got 'sum'"):
        patient_kd(*STATES, variant="sum")  # type: ignore[arg-type]
