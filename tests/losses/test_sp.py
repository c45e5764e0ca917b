"""`sp` against the paper's tables, entry by entry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._sp import sp
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, power: float = 2.0) -> Tensor:
    def table(x: Tensor) -> list[list[Tensor]]:
        rows = []
        for a in x.flatten(1):
            products = [sum((u * v for u, v in zip(a, b, strict=True)), x.new_zeros(())) for b in x.flatten(1)]
            length = sum((p.abs() ** power for p in products), x.new_zeros(())) ** (1 / power)
            rows.append([p / length if length > 0 else p for p in products])
        return rows

    n = len(student)
    s, t = table(student), table(teacher)
    return torch.stack([(s[i][j] - t[i][j]) ** 2 for i in range(n) for j in range(n)]).sum() / n**2


TRIALS = (
    loss_trial(
        sp,
        reference=slow,
        limits={"strangers": lambda fn: (fn(torch.eye(2), torch.ones(2, 1)), 1 - 0.5**0.5)},
        examples=8,
    ),
    loss_trial(
        sp,
        (torch.randn(4, 2, 2, 2), torch.randn(4, 2, 2, 2)),
        tags=Tags(rotation_invariant=False),
        name="sp of maps",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_zhijian() -> None:
    same(sp, theirs("zhijian.models.kd.loss.sp", "SP"), torch.randn(7, 3, 4, 4), torch.randn(7, 5, 2, 2))


def test_torchdistill_divides_rows_by_sums_of_absolute_values() -> None:
    other = theirs("torchdistill.losses.mid_level", "SPKDLoss", "x", "x", "batchmean")

    def spkd(student: Tensor, teacher: Tensor) -> Tensor:
        return other(tapped(x=student), tapped(x=teacher))

    student, teacher = torch.randn(2, 16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same(lambda s, t: slow(s, t, power=1.0), spkd, student, teacher)
    assert torch.allclose(sp(student, teacher), slow(student, teacher), rtol=1e-12)
    assert sp(student, teacher).item() == pytest.approx(6.2 * spkd(student, teacher).item(), rel=0.01)


def test_widths_may_differ_and_rows_not() -> None:
    assert sp(torch.randn(3, 2), torch.randn(3, 2, 4, 4)).item() > 0
    with pytest.raises(TransferError, match=r"sp: wanted features of the same rows, got student \(3, 2\)"):
        sp(torch.zeros(3, 2), torch.zeros(4, 2))
