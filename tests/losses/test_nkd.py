"""`nkd` against the paper's formula in slow loops."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.losses._nkd import nkd
from ttransfer.losses._soft import soft_cross_entropy
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, labels: Tensor, gamma: float = 1.5, temperature: float = 1.0) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t, y in zip(student, teacher.detach(), labels.tolist(), strict=True):
        total = total - t.softmax(0)[y] * s.log_softmax(0)[y]
        others = [j for j in range(len(s)) if j != y]
        sum_t = sum(((t[j] / temperature).exp() for j in others), 0 * t[0])
        top = max(s[j].item() for j in others)
        log_sum_s = sum((((s[j] - top) / temperature).exp() for j in others), 0 * s[0]).log() + top / temperature
        for j in others:
            r = (t[j] / temperature).exp() / sum_t
            total = total - gamma * temperature**2 * r * (s[j] / temperature - log_sum_s)
    return total / len(student)


MAPS = (
    torch.randn(3, 4, 2, 2),
    torch.randn(3, 4, 2, 2),
    torch.randint(0, 4, (3, 2, 2), generator=torch.Generator().manual_seed(0)),
)
TRIALS = (
    loss_trial(
        nkd,
        reference=slow,
        limits={
            "unsure": lambda fn: (
                fn(torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor([0, 3])),
                math.log(4) / 4 + 1.5 * math.log(3),
            )
        },
    ),
    loss_trial(
        functools.partial(nkd, gamma=0.5, temperature=3.0),
        reference=functools.partial(slow, gamma=0.5, temperature=3.0),
        name="nkd at 3",
        examples=8,
    ),
    loss_trial(nkd, MAPS, name="nkd of maps", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_a_mask_of_ones_leaves_nothing_out() -> None:
    """A version of the authors' code scatters ones into ones."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 8, 5, dtype=torch.float64, generator=generator) * 2
    labels = torch.randint(0, 5, (8,), generator=generator)
    mask = torch.ones_like(student).scatter_(1, labels[:, None], 1).bool()
    assert mask.all()
    log_s, p = (student[mask].reshape(8, -1).log_softmax(1), teacher[mask].reshape(8, -1).softmax(1))
    theirs = -(p * log_s).sum(1).mean()
    torch.testing.assert_close(theirs, soft_cross_entropy(student, teacher, temperature=1.0))
    ours = (nkd(student, teacher, labels, gamma=1.0) - nkd(student, teacher, labels, gamma=0.0)).item()
    assert ours < 0.95 * theirs.item() or ours > 1.05 * theirs.item()


def test_of_two_classes_the_label_is_left() -> None:
    student, teacher = torch.randn(2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0, 1])
    assert nkd(student, teacher, labels).item() == nkd(student, teacher, labels, gamma=0.0).item()


def test_errors() -> None:
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TransferError, match=r"nkd: wanted at least two classes, got student \(4, 1\)"):
        nkd(x[:, :1], x[:, :1], y)
    with pytest.raises(TransferError, match=r"nkd: wanted one label for each row"):
        nkd(x, x, y[:3])
