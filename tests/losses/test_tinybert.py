"""`tinybert_attention` and `tinybert_hidden` against their formulas in slow loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ttransfer._errors import TransferError
from ttransfer.losses._tinybert import tinybert_attention, tinybert_hidden
from ttransfer.testing import loss_trial, parametrize_with_checks


def valid(mask: Tensor | None, i: int, length: int) -> list[int]:
    return [p for p in range(length) if mask is None or mask[i, p]]


def slow_attention(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    found = [
        (student[i, a, p, q] - teacher[i, a, p, q].detach()) ** 2
        for i in range(len(student))
        for a in range(student.shape[1])
        for p in valid(mask, i, student.shape[2])
        for q in valid(mask, i, student.shape[2])
    ]
    return torch.stack(found).mean()


def slow_hidden(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    found = [
        (student[i, p, k] - teacher[i, p, k].detach()) ** 2
        for i in range(len(student))
        for p in valid(mask, i, student.shape[1])
        for k in range(student.shape[2])
    ]
    return torch.stack(found).mean()


SCORES = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
STATES = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
MASK = torch.tensor([[True, True, False]] * 4)
TRIALS = (
    loss_trial(tinybert_attention, SCORES, reference=slow_attention, examples=8),
    loss_trial(
        tinybert_attention,
        (*SCORES, MASK),
        reference=slow_attention,
        name="tinybert_attention, masked",
        examples=8,
    ),
    loss_trial(tinybert_hidden, STATES, reference=slow_hidden, examples=8),
    loss_trial(
        tinybert_hidden, (*STATES, MASK.float()), reference=slow_hidden, name="tinybert_hidden, masked", examples=8
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_without_a_mask_they_are_mean_squares() -> None:
    torch.testing.assert_close(tinybert_attention(*SCORES), F.mse_loss(*SCORES))
    one, other = (x[:, 0] for x in SCORES)
    torch.testing.assert_close(tinybert_attention(one, other), F.mse_loss(one, other))
    torch.testing.assert_close(tinybert_hidden(*STATES), F.mse_loss(*STATES))


@pytest.mark.parametrize("low", [-torch.inf, -1e4])
def test_padding_changes_nothing(low: float) -> None:
    student, teacher = (F.pad(x, (0, 2, 0, 2), value=low).requires_grad_() for x in SCORES)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 4)
    value = tinybert_attention(student, teacher, mask)
    torch.testing.assert_close(value, tinybert_attention(*SCORES))
    (slope,) = torch.autograd.grad(value, student)
    assert slope[..., 3:].count_nonzero() == slope[..., 3:, :].count_nonzero() == 0
    # The authors' rule: scores below -100 are 0, and stay in the mean's count.
    student, teacher = (torch.where(x <= -100, 0, x) for x in (student, teacher))
    authors = F.mse_loss(student, teacher)
    torch.testing.assert_close(authors, value * 9 / 25)


def test_nothing_valid_is_zero() -> None:
    assert tinybert_hidden(*STATES, torch.zeros(4, 3)).item() == 0
    assert tinybert_attention(*SCORES, torch.zeros(4, 3)).item() == 0


def test_what_is_refused() -> None:
    with pytest.raises(TransferError, match=r"tinybert_attention: wanted scores \(n, heads, tokens, tokens\)"):
        tinybert_attention(*STATES)
    with pytest.raises(TransferError, match=r"tinybert_attention: wanted a mask \(n, tokens\) = \(4, 3\)"):
        tinybert_attention(*SCORES, MASK[:, :2])
    with pytest.raises(TransferError, match=r"tinybert_hidden: wanted a mask \(n, tokens\) = \(4, 3\)"):
        tinybert_hidden(*STATES, MASK[:3])
    with pytest.raises(TransferError, match="tinybert_hidden: wanted tensors of one shape"):
        tinybert_hidden(STATES[0], STATES[1][:, :2])
