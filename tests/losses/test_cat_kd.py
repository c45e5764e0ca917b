"""`cat_kd` against the formula in slow loops."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ttransfer._errors import TransferError
from ttransfer.losses._cat_kd import cat_kd
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, resolution: int = 2) -> Tensor:
    def pooled(seen: Tensor) -> Tensor:
        height, width = (size // resolution for size in seen.shape)
        cells = [
            seen[i * height : (i + 1) * height, j * width : (j + 1) * width].mean()
            for i in range(resolution)
            for j in range(resolution)
        ]
        return torch.stack(cells) / torch.stack(cells).norm()

    gaps = [
        pooled(s) - pooled(t)
        for one, other in zip(student, teacher.detach(), strict=True)
        for s, t in zip(one, other, strict=True)
    ]
    return torch.stack([x**2 for gap in gaps for x in gap]).mean()


TRIALS = (
    loss_trial(cat_kd, (torch.randn(4, 3, 4, 6), torch.randn(4, 3, 4, 6)), reference=slow, examples=8),
    loss_trial(
        functools.partial(cat_kd, resolution=3),
        (torch.randn(4, 2, 6, 3), torch.randn(4, 2, 3, 6)),
        tags=Tags(zero_at_equality=False, symmetric=False),
        reference=functools.partial(slow, resolution=3),
        name="cat_kd of other sizes",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_the_authors_formula() -> None:
    student, teacher = torch.randn(4, 10, 8, 8), torch.randn(4, 10, 7, 7)
    s, t = (F.normalize(F.adaptive_avg_pool2d(x, 2).flatten(2), dim=2) for x in (student, teacher))
    torch.testing.assert_close(cat_kd(student, teacher), F.mse_loss(s, t))


def test_a_class_that_is_nowhere_counts_and_has_a_slope() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = cat_kd(student, torch.ones(2, 3, 4, 4))
    value.backward()
    assert value.item() == pytest.approx(1 / 4)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_what_is_refused() -> None:
    with pytest.raises(TransferError, match="cat_kd: wanted feature maps of the same channels"):
        cat_kd(torch.zeros(4, 3, 8, 8), torch.zeros(4, 2, 8, 8))
    with pytest.raises(TransferError, match=r"cat_kd: wanted feature maps \(n, channels, height, width\)"):
        cat_kd(torch.zeros(4, 3), torch.zeros(4, 3))
