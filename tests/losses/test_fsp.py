"""`fsp` against the paper's matrices, entry by entry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._fsp import fsp
from ttransfer.testing import loss_trial, parametrize_with_checks


def flow(first: Tensor, last: Tensor) -> list[Tensor]:
    height, width = first.shape[1:]
    places = [(i, j) for i in range(height) for j in range(width)]
    return [
        sum((one[p] * other[p] for p in places), first.new_zeros(())) / len(places) for one in first for other in last
    ]


def slow(student_first: Tensor, student_last: Tensor, teacher_first: Tensor, teacher_last: Tensor) -> Tensor:
    total = student_first.new_zeros(())
    for s1, s2, t1, t2 in zip(student_first, student_last, teacher_first, teacher_last, strict=True):
        total = total + sum((g - h) ** 2 for g, h in zip(flow(s1, s2), flow(t1, t2), strict=True))
    return total / len(student_first)


ONES, ZEROS = torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
TRIALS = (
    loss_trial(
        fsp,
        tuple(torch.randn(4, c, 2, 2) for c in (2, 3, 2, 3)),
        reference=slow,
        limits={"a sum over both channels": lambda fn: (fn(ONES, ONES, ZEROS, ZEROS), 9.0)},
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def maps() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 3, 4, 4), (5, 6, 4, 4), (5, 3, 2, 2), (5, 6, 2, 2))
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)


def test_zhijian_takes_the_mean_where_the_paper_sums() -> None:
    other = theirs("zhijian.models.kd.loss.fsp", "FSP")
    same(fsp, lambda *inputs: 3 * 6 * other(*inputs), *maps())


def test_torchdistill_adds_up_norms_where_the_paper_adds_up_squares() -> None:
    ends = {
        f"{net}_{end}": {"io": "output", "path": end} for net in ("student", "teacher") for end in ("first", "second")
    }
    other = theirs("torchdistill.losses.mid_level", "FSPLoss", {"pair": ends})

    def fsp_loss(s1: Tensor, s2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        return other(tapped(first=s1, second=s2), tapped(first=t1, second=t2))

    inputs = maps()
    gaps = [torch.stack(flow(s1, s2)) - torch.stack(flow(t1, t2)) for s1, s2, t1, t2 in zip(*inputs, strict=True)]
    norms = torch.stack([gap.reshape(3, 6).norm(dim=0).sum() for gap in gaps]).mean()
    assert torch.allclose(fsp_loss(*inputs), norms, rtol=1e-12)
    # Near the teacher, a tenth of the distance is a hundredth of the loss, and a tenth of theirs.
    _, _, t1, t2 = inputs
    near, far = (1.1 * t1, t2, t1, t2), (2 * t1, t2, t1, t2)
    assert (fsp(*near) / fsp(*far)).item() == pytest.approx(0.01, rel=1e-9)
    assert (fsp_loss(*near) / fsp_loss(*far)).item() == pytest.approx(0.1, rel=1e-9)


def test_what_is_refused() -> None:
    s1, s2, t1, t2 = maps()
    with pytest.raises(TransferError, match=r"fsp: .*same height and width.*student_first.*pool the larger"):
        fsp(s1, s2[..., :2, :2], t1, t2)
    with pytest.raises(TransferError, match=r"fsp: .*same height and width.*teacher_first"):
        fsp(s1, s2, t1, t2[..., :1])
    with pytest.raises(TransferError, match=r"fsp: .*same channels, got student_last .*adapter"):
        fsp(s1, s2, t1, t2[:, :4])
    with pytest.raises(TransferError, match=r"fsp: .*same rows"):
        fsp(s1, s2, t1[:3], t2[:3])
