"""`self_ensembling` against a loop after the authors' code, and what keeps it from one class for all."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

from tests.support.games import normal
from tests.support.steps import refused
from ttransfer.align._consistency import consistency
from ttransfer.align._self_ensembling import self_ensembling
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, threshold: float = 0.5, balance: float = 0.3) -> Tensor:
    rows = student.movedim(1, -1).flatten(0, -2)
    n, count = rows.shape
    total, sure, mean = student.new_zeros(()), 0, [student.new_zeros(())] * count
    for s, t in zip(rows, teacher.detach().movedim(1, -1).flatten(0, -2), strict=True):
        p, q = s.exp() / s.exp().sum(), t.exp() / t.exp().sum()
        mean = [m + x / n for m, x in zip(mean, p, strict=True)]
        if q.max() > threshold:
            sure += 1
            total = total + sum((p[j] - q[j]) ** 2 for j in range(count)) / (n * count)
    for m in mean:
        total = total - balance * sure / n * (m.log() / count + (1 - 1 / count) * (1 - m).log())
    return total


TRIALS = (
    loss_trial(
        functools.partial(self_ensembling, threshold=0.5, balance=0.3),
        reference=slow,
        limits={"nobody is sure": lambda fn: (fn(torch.randn(3, 2), torch.zeros(3, 2)), 0)},
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_maps_and_without_threshold_and_balance() -> None:
    s, t = normal(0, 3, 4, 2, 2), 2 * normal(1, 3, 4, 2, 2)
    found = self_ensembling(s, t, threshold=0.5, balance=0.3)
    torch.testing.assert_close(found, slow(s, t), rtol=1e-9, atol=0)
    torch.testing.assert_close(self_ensembling(s, t, threshold=0.0, balance=0.0), consistency(s, t), rtol=1e-12, atol=0)


def test_one_class_for_all_is_left_again() -> None:
    """The teacher is of one mind with the student: only the balance pulls."""
    logits = torch.tensor([[30.0, 0.0, 0.0]]).expand(4, 3)
    slope = grad(self_ensembling)(logits, logits)
    assert slope[:, 0].min() > 0 > slope[:, 1:].max()
    assert grad(self_ensembling)(logits, logits, balance=0.0).count_nonzero() == 0
    even = torch.tensor([[30.0, 0.0, 0.0], [0.0, 30.0, 0.0], [0.0, 0.0, 30.0]])
    assert self_ensembling(even, even) < self_ensembling(logits, logits)


def test_confident_rows_are_finite() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        sure = 1000 * torch.eye(3, dtype=dtype)[[0, 0]]
        assert self_ensembling(sure, sure).isfinite()
        assert grad(self_ensembling)(sure, sure).isfinite().all()


def test_what_is_refused() -> None:
    s, t = torch.zeros(2, 3), torch.zeros(1, 3)
    refused(lambda: self_ensembling(s, t), "self_ensembling: wanted logits of one shape", "teacher (1, 3)")
    refused(lambda: self_ensembling(s, s, threshold=2.0), "from 0 to 1 for threshold", "2.0")
    refused(lambda: self_ensembling(s, s, balance=-1.0), "at least 0 for balance", "-1.0")
