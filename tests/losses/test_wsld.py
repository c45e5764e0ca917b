"""`wsld` against a slow loop and MMRazor's formula."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from ttransfer._errors import TransferError
from ttransfer.losses._soft import soft_cross_entropy
from ttransfer.losses._wsld import wsld
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 2.0) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t, y in zip(student, teacher.detach(), labels.tolist(), strict=True):
        behind, ahead = -s.detach().log_softmax(0)[y].item(), -t.log_softmax(0)[y].item()
        weight = 1 - math.exp(-behind / (ahead + 1e-7))
        p, log_q = (t / temperature).softmax(0), (s / temperature).log_softmax(0)
        for j in range(len(s)):
            total = total - weight * temperature**2 * p[j] * log_q[j]
    return total / len(student)


BROKEN = {
    "gradcheck": "the weights depend on the student and are held constant, as the paper has it",
    "lowest-at-equality": "the weight of a student that is sure of the label falls to 0",
}
MAPS = (
    torch.randn(3, 4, 2, 2),
    torch.randn(3, 4, 2, 2),
    torch.randint(0, 4, (3, 2, 2), generator=torch.Generator().manual_seed(0)),
)
TRIALS = (
    loss_trial(wsld, reference=slow, expected_failed_checks=BROKEN),
    loss_trial(
        functools.partial(wsld, temperature=1.0),
        reference=functools.partial(slow, temperature=1.0),
        expected_failed_checks=BROKEN,
        name="wsld at 1",
        examples=8,
    ),
    loss_trial(wsld, MAPS, expected_failed_checks=BROKEN, name="wsld of maps", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator) * 2
    return student, teacher, torch.randint(0, 5, (6,), generator=generator)


def mmrazor(student: Tensor, teacher: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Its formula, without its modules on CUDA."""
    soft = -((teacher / tau).softmax(1) * (student / tau).log_softmax(1)).sum(1)
    of_student, of_teacher = (F.cross_entropy(x.detach(), labels, reduction="none") for x in (student, teacher))
    return tau**2 * ((1 - torch.exp(-(of_student / (of_teacher + 1e-7)).clamp_min(0))) * soft).mean()


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_mmrazors_formula_agrees(tau: float) -> None:
    student, teacher, labels = case()
    got = grad_and_value(lambda s: wsld(s, teacher, labels, temperature=tau))(student)
    expected = grad_and_value(lambda s: mmrazor(s, teacher, labels, tau))(student)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_sure_teacher_gives_all_rows_weight() -> None:
    student, _, labels = case()
    teacher = F.one_hot(labels, 5).double() * 1e3
    torch.testing.assert_close(wsld(student, teacher, labels), soft_cross_entropy(student, teacher, temperature=2.0))


def test_errors() -> None:
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TransferError, match=r"wsld: wanted one label for each row"):
        wsld(x, x, y[:3])
    with pytest.raises(TransferError, match=r"wsld: wanted tensors of one shape"):
        wsld(x, x[:3], y)
