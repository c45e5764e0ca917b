"""`hcl` against means over cells, scale by scale."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._hcl import hcl
from ttransfer.testing import loss_trial, parametrize_with_checks


def pooled(image: Tensor, size: int) -> Tensor:
    """Each cell is the mean of the places that it covers, those on its edge with it."""

    def spans(length: int) -> list[slice]:
        return [slice(i * length // size, math.ceil((i + 1) * length / size)) for i in range(size)]

    rows = [[image[:, a, b].mean((1, 2)) for b in spans(image.shape[2])] for a in spans(image.shape[1])]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def slow(student: Tensor, teacher: Tensor, sizes: tuple[int, ...] = (4, 2, 1)) -> Tensor:
    height = student.shape[2]
    total, weights = ((student - teacher) ** 2).mean(), 1.0
    for k, size in enumerate((s for s in sizes if s < height), start=1):
        gaps = [pooled(s, size) - pooled(t, size) for s, t in zip(student, teacher, strict=True)]
        total = total + torch.stack([g**2 for gap in gaps for g in gap.flatten()]).mean() / 2**k
        weights += 1 / 2**k
    return total / weights


TRIALS = (
    loss_trial(
        hcl,
        (torch.randn(4, 2, 5, 5), torch.randn(4, 2, 5, 5)),
        reference=slow,
        limits={"one apart": lambda fn: (fn(torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)), 1.0)},
        examples=8,
    ),
    loss_trial(
        functools.partial(hcl, sizes=(2,)),
        (torch.randn(4, 2, 4, 3), torch.randn(4, 2, 4, 3)),
        reference=functools.partial(slow, sizes=(2,)),
        name="hcl of one scale",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("side", [1, 2, 4, 7, 8])
def test_beside_torchdistill(side: int) -> None:
    other = theirs("torchdistill.losses.mid_level", "HierarchicalContextLoss", "x", "output", "x", "output")
    student, teacher = torch.randn(2, 4, 3, side, side, dtype=torch.float64)
    same(hcl, lambda s, t: other(tapped(x=(s, None)), tapped(x=t)), student, teacher)


def test_what_is_refused() -> None:
    with pytest.raises(TransferError, match=r"hcl: .*same channels.*adapter"):
        hcl(torch.zeros(4, 3, 8, 8), torch.zeros(4, 5, 8, 8))
    with pytest.raises(TransferError, match=r"hcl: .*same height and width"):
        hcl(torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 4, 4))
