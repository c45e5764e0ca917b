"""`ickd` against the paper's table of channels, entry by entry."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._ickd import ickd
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def table(image: Tensor) -> list[list[Tensor]]:
    channels = image.flatten(1)
    return [[sum((u * v for u, v in zip(a, b, strict=True)), a.new_zeros(())) for b in channels] for a in channels]


def slow(student: Tensor, teacher: Tensor) -> Tensor:
    values = []
    for image, other in zip(student, teacher, strict=True):
        pairs = zip(itertools.chain(*table(image)), itertools.chain(*table(other)), strict=True)
        values.append(torch.stack([(g - h) ** 2 for g, h in pairs]).sum() / len(image) ** 2)
    return torch.stack(values).mean()


def slow_code(student: Tensor, teacher: Tensor) -> Tensor:
    def scaled(row: list[Tensor]) -> Tensor:
        length = sum(g**2 for g in row) ** 0.5
        return torch.stack([g / length if length > 0 else g for g in row])

    total = student.new_zeros(())
    for image, other in zip(student, teacher, strict=True):
        for one, another in zip(table(image), table(other), strict=True):
            total = total + (scaled(one) - scaled(another)).square().sum()
    return total / (student.shape[0] * student.shape[1])


S, T = torch.tensor([[[[1.0]], [[0.0]]]]), torch.ones(1, 2, 1, 1)
MAPS = (torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2))
TRIALS = (
    loss_trial(ickd, MAPS, reference=slow, limits={"one and two": lambda fn: (fn(S, T), 0.75)}, examples=8),
    loss_trial(
        functools.partial(ickd, variant="code"),
        MAPS,
        tags=Tags(scale_invariant=True),
        reference=slow_code,
        limits={"one and two": lambda fn: (fn(S, T), (3 - 2**0.5) / 2)},
        name="ickd of the code",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("rows", [1, 6])
def test_torchdistill_divides_by_the_rows_twice(rows: int) -> None:
    pairs = {"pair": {"student": {"io": "output", "path": "x"}, "teacher": {"io": "output", "path": "x"}}}
    other = theirs("torchdistill.losses.mid_level", "ChSimLoss", pairs)
    student, teacher = torch.randn(rows, 3, 5, 5), torch.randn(rows, 3, 4, 4)
    ours = functools.partial(ickd, variant="code")
    same(ours, lambda s, t: rows * other(tapped(x=s), tapped(x=t)), student, teacher)


def test_what_is_refused() -> None:
    maps = torch.zeros(4, 3, 8, 8)
    with pytest.raises(TransferError, match=r"ickd: .*same channels.*adapter"):
        ickd(maps, torch.zeros(4, 5, 8, 8))
    with pytest.raises(TransferError, match="ickd: wanted variant 'paper' or 'code', got 'sum'"):
        ickd(maps, maps, variant="sum")  # type: ignore[arg-type]
