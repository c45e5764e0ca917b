"""`ft` and `ft_maps` against norms entry by entry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._ft import ft, ft_maps
from ttransfer.testing import loss_trial, parametrize_with_checks


def apart(ones: list[Tensor], others: list[Tensor]) -> Tensor:
    def scaled(entries: list[Tensor]) -> list[Tensor]:
        length = sum(x**2 for x in entries) ** 0.5
        return [x / length for x in entries] if length > 0 else entries

    pairs = zip(scaled(ones), scaled(others), strict=True)
    return torch.stack([(a - b).abs() for a, b in pairs]).mean()


def slow(student: Tensor, teacher: Tensor) -> Tensor:
    rows = zip(student, teacher, strict=True)
    return torch.stack([apart(list(s.flatten()), list(t.flatten())) for s, t in rows]).mean()


def slow_maps(student: Tensor, teacher: Tensor) -> Tensor:
    def places(image: Tensor) -> list[Tensor]:
        return [
            sum((x**2 for x in image[:, i, j]), image.new_zeros(())) for i, j in torch.cartesian_prod(*sides).tolist()
        ]

    sides = [torch.arange(n) for n in student.shape[2:]]
    return torch.stack([apart(places(s), places(t)) for s, t in zip(student, teacher, strict=True)]).mean()


LEFT, RIGHT = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
MAPS = (torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2))
TRIALS = (
    loss_trial(
        ft,
        reference=slow,
        limits={"elsewhere": lambda fn: (fn(LEFT.flatten(1), RIGHT.flatten(1)), 1.0)},
        examples=8,
    ),
    loss_trial(ft, MAPS, reference=slow, name="ft of factors that are maps", examples=8),
    loss_trial(ft_maps, MAPS, reference=slow_maps, limits={"elsewhere": lambda fn: (fn(LEFT, RIGHT), 1.0)}, examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def ft_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return theirs("torchdistill.losses.mid_level", "FTLoss")(tapped(translator=student), tapped(paraphraser=teacher))


def test_beside_others() -> None:
    student, teacher = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    same(ft, ft_loss, student, teacher)
    same(ft, theirs("zhijian.models.kd.loss.ft", "FT"), student, teacher)


def test_maps_beside_repdistillers_formula() -> None:
    def factor(x: Tensor) -> Tensor:
        return F.normalize(x.pow(2).mean(1).flatten(1))

    same(ft_maps, lambda s, t: F.l1_loss(factor(s), factor(t)), torch.randn(4, 3, 5, 5), torch.randn(4, 7, 5, 5))


def test_a_row_of_zeros_is_finite() -> None:
    student = torch.zeros(2, 3)
    assert ft_loss(student, torch.ones(2, 3)).isnan()
    assert ft(student, torch.ones(2, 3)).item() == pytest.approx(3**-0.5)
    assert torch.func.grad(ft)(student, torch.ones(2, 3)).count_nonzero() == 0


def test_what_is_refused() -> None:
    with pytest.raises(TransferError, match=r"ft: .*student \(4, 3\) float32 and teacher \(4, 5\) float32"):
        ft(torch.zeros(4, 3), torch.zeros(4, 5))
    with pytest.raises(TransferError, match=r"ft_maps: .*same height and width"):
        ft_maps(torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 4, 4))
