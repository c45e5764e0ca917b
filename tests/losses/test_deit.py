"""`deit_hard` and `deit_soft` against `kd`, torch and slow loops."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._deit import deit_hard, deit_soft
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow_hard(student: Tensor, teacher: Tensor) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher.tolist(), strict=True):
        total = total - s.log_softmax(0)[t.index(max(t))]
    return total / len(student)


def slow_soft(student: Tensor, teacher: Tensor, classes_too: bool = False) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher.detach(), strict=True):
        log_p, log_q = (t / 3).log_softmax(0), (s / 3).log_softmax(0)
        for a, b in zip(log_p, log_q, strict=True):
            total = total + 9 * a.exp() * (a - b)
    return total / (student.numel() if classes_too else len(student))


MAPS = (torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2))
TRIALS = (
    loss_trial(deit_hard, reference=slow_hard),
    loss_trial(deit_hard, MAPS, name="deit_hard of maps", examples=8),
    loss_trial(deit_soft, reference=slow_soft),
    loss_trial(
        functools.partial(deit_soft, variant="code"),
        reference=functools.partial(slow_soft, classes_too=True),
        name="deit_soft as code",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def case() -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    return student, teacher


def test_hard_is_cross_entropy_with_the_decisions() -> None:
    student, teacher = case()
    got = grad_and_value(deit_hard)(student, teacher)
    expected = grad_and_value(F.cross_entropy)(student, teacher.argmax(dim=-1))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-14)


def test_soft_is_kd_and_the_code_divides_by_the_classes() -> None:
    student, teacher = case()
    torch.testing.assert_close(deit_soft(student, teacher), kd(student, teacher, temperature=3.0), rtol=1e-12, atol=0)
    s, t = (student / 3).log_softmax(1), (teacher / 3).log_softmax(1)
    code = F.kl_div(s, t, reduction="sum", log_target=True) * 9 / student.numel()
    torch.testing.assert_close(deit_soft(student, teacher, variant="code"), code, rtol=1e-10, atol=0)
    torch.testing.assert_close(5 * code, deit_soft(student, teacher), rtol=1e-10, atol=0)


def test_errors() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(TransferError, match=r"deit_hard: wanted tensors of one shape"):
        deit_hard(x, x[:3])
    with pytest.raises(TransferError, match=r"deit_soft: wanted tensors of one shape"):
        deit_soft(x, x[:3])
    with pytest.raises(TransferError, match=r"deit_soft: wanted variant 'paper' or 'code', got 'mean'"):
        deit_soft(x, x, variant="mean")  # pyright: ignore[reportArgumentType]
