"""`mobilebert_attention` and `mobilebert_hidden` against their formulas in slow loops."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ttransfer._errors import TransferError
from ttransfer.losses._mobilebert import mobilebert_attention, mobilebert_hidden
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def valid(mask: Tensor | None, i: int, length: int) -> list[int]:
    return [p for p in range(length) if mask is None or mask[i, p]]


def slow_attention(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    found = []
    for i in range(len(student)):
        kept = valid(mask, i, student.shape[-1])
        for a in range(student.shape[1]):
            for p in kept:
                log_s, log_t = (x[i, a, p][kept].log_softmax(0) for x in (student, teacher.detach()))
                found.append(sum(y.exp() * (y - x) for x, y in zip(log_s, log_t, strict=True)))
    return torch.stack([torch.as_tensor(x) for x in found]).mean()


def slow_hidden(student: Tensor, teacher: Tensor, mask: Tensor | None = None, variant: str = "paper") -> Tensor:
    found = []
    for i in range(len(student)):
        for p in valid(mask, i, student.shape[1]):
            s, t = student[i, p], teacher[i, p].detach()
            if variant == "paper":
                found.append(torch.stack([(a - b) ** 2 for a, b in zip(s, t, strict=True)]).mean())
                continue
            means, variances = [x.mean() for x in (s, t)], [x.var(unbiased=False) for x in (s, t)]
            a, b = ((x - m) / (v + 1e-12).sqrt() for x, m, v in zip((s, t), means, variances, strict=True))
            whole = ((a - b) ** 2).mean() + 50 * (means[0] - means[1]) ** 2
            found.append(whole + 0.05 * (variances[0] - variances[1]).abs())
    return torch.stack(found).mean()


SCORES = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
STATES = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
MASK = torch.tensor([[True, True, False]] * 4)
CODE = functools.partial(mobilebert_hidden, variant="code")
TRIALS = (
    loss_trial(mobilebert_attention, SCORES, reference=slow_attention, examples=8),
    loss_trial(
        mobilebert_attention,
        (*SCORES, MASK),
        reference=slow_attention,
        name="mobilebert_attention, masked",
        examples=8,
    ),
    loss_trial(mobilebert_hidden, (*STATES, MASK), tags=Tags(double_backward=True), reference=slow_hidden, examples=8),
    loss_trial(
        CODE,
        (*STATES, MASK.float()),
        reference=functools.partial(slow_hidden, variant="code"),
        name="mobilebert_hidden of the code",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_without_a_mask() -> None:
    torch.testing.assert_close(mobilebert_hidden(*STATES), F.mse_loss(*STATES))
    student, teacher = (F.layer_norm(x, (5,), eps=1e-12) for x in STATES)
    normalised = F.mse_loss(student, teacher)
    torch.testing.assert_close(CODE(*STATES, mean_weight=0.0, variance_weight=0.0), normalised)


def test_the_authors_cross_entropy_has_the_same_gradient() -> None:
    def crossed(s: Tensor, t: Tensor) -> Tensor:
        return -(t.softmax(-1) * s.log_softmax(-1)).sum(-1).mean()

    torch.testing.assert_close(torch.func.grad(crossed)(*SCORES), torch.func.grad(mobilebert_attention)(*SCORES))
    assert crossed(SCORES[0], SCORES[0]) > 0.1


@pytest.mark.parametrize("low", [-torch.inf, -1e4])
def test_padding_changes_nothing(low: float) -> None:
    student, teacher = (F.pad(x, (0, 2, 0, 2), value=low).requires_grad_() for x in SCORES)
    value = mobilebert_attention(student, teacher, torch.tensor([[1, 1, 1, 0, 0]] * 4))
    torch.testing.assert_close(value, mobilebert_attention(*SCORES))
    (slope,) = torch.autograd.grad(value, student)
    assert slope.isfinite().all()
    assert slope[..., 3:].count_nonzero() == slope[..., 3:, :].count_nonzero() == 0


def test_nothing_valid_is_zero() -> None:
    none = torch.zeros(4, 3)
    assert mobilebert_attention(*SCORES, none).item() == mobilebert_hidden(*STATES, none).item() == 0


def test_what_is_refused() -> None:
    with pytest.raises(TransferError, match=r"mobilebert_attention: wanted scores \(n, heads, tokens, tokens\)"):
        mobilebert_attention(*STATES)
    with pytest.raises(TransferError, match=r"mobilebert_attention: wanted a mask \(n, tokens\) = \(4, 3\)"):
        mobilebert_attention(*SCORES, MASK[:, :2])
    with pytest.raises(TransferError, match="mobilebert_hidden: wanted variant 'paper' or 'code', got 'sum'"):
        mobilebert_hidden(*STATES, variant="sum")  # type: ignore[arg-type]
