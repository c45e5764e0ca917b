"""`vitkd` against the formula in slow loops."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.losses._vitkd import vitkd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(
    student: Tensor,
    teacher: Tensor,
    student_deep: Tensor,
    teacher_deep: Tensor,
    mask: Tensor,
    alpha: float = 3e-5,
    beta: float = 3e-6,
    ratio: float = 0.5,
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(student)):
        for layer in range(student.shape[1]):
            for s, t in zip(student[i, layer], teacher[i, layer].detach(), strict=True):
                total = total + alpha * sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
        for s, t, hidden in zip(student_deep[i], teacher_deep[i].detach(), mask[i], strict=True):
            if hidden:
                total = total + beta / ratio * sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
    return total / len(student)


TOKENS = (torch.randn(4, 2, 3, 5), torch.randn(4, 2, 3, 5), torch.randn(4, 3, 2), torch.randn(4, 3, 2))
MASK = torch.tensor([[True, False, True]] * 4)
TRIALS = (
    loss_trial(vitkd, (*TOKENS, MASK), reference=slow, examples=8),
    loss_trial(
        functools.partial(vitkd, alpha=0.5, beta=2.0, ratio=0.25),
        (*TOKENS, MASK.float()),
        reference=functools.partial(slow, alpha=0.5, beta=2.0, ratio=0.25),
        name="vitkd of other weights",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_what_was_seen_is_not_generated() -> None:
    low, deep = torch.zeros(2, 2, 3, 4), torch.randn(2, 3, 4)
    slope = torch.func.grad(lambda s: vitkd(low, low, s, torch.zeros_like(deep), MASK[:2]))(deep)
    assert ((slope != 0).all(2) == MASK[:2]).all()
    assert slope[~MASK[:2]].count_nonzero() == 0


def test_what_is_refused() -> None:
    with pytest.raises(TransferError, match=r"vitkd: wanted deep tokens \(n, tokens, d\) and a mask \(n, tokens\)"):
        vitkd(*TOKENS, MASK[:, :2])
    with pytest.raises(TransferError, match="vitkd: wanted deep tokens"):
        vitkd(TOKENS[0][:3], TOKENS[1][:3], TOKENS[2], TOKENS[3], MASK)
    with pytest.raises(TransferError, match="vitkd: wanted tensors of one shape"):
        vitkd(TOKENS[0], TOKENS[1][:, :1], TOKENS[2], TOKENS[3], MASK)
