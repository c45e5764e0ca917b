"""`at` against the paper's formula in slow loops."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._at import at
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, variant: str = "paper") -> Tensor:
    def attended(image: Tensor) -> Tensor:
        channels, height, width = image.shape
        places = [
            sum((image[c, i, j] ** 2 for c in range(channels)), image.new_zeros(()))
            for i in range(height)
            for j in range(width)
        ]
        length = sum((p**2 for p in places), image.new_zeros(())).sqrt()
        return torch.stack(places) / length if length > 0 else torch.stack(places)

    gaps = [attended(s) - attended(t) for s, t in zip(student, teacher, strict=True)]
    if variant == "paper":
        return torch.stack([gap.norm() for gap in gaps]).mean()
    return torch.stack([g**2 for gap in gaps for g in gap]).mean()


LEFT, RIGHT = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
MAPS = (torch.randn(4, 3, 2, 3), torch.randn(4, 3, 2, 3))
TRIALS = (
    loss_trial(at, MAPS, reference=slow, limits={"elsewhere": lambda fn: (fn(LEFT, RIGHT), 2**0.5)}, examples=8),
    loss_trial(
        functools.partial(at, variant="code"),
        MAPS,
        tags=Tags(double_backward=True),  # the distance of "paper" has a tip at equality
        reference=functools.partial(slow, variant="code"),
        limits={"elsewhere": lambda fn: (fn(LEFT, RIGHT), 1.0)},
        name="at of the code",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_beside_torchdistill(variant: str) -> None:
    pairs = {"pair": {"student": {"io": "output", "path": "x"}, "teacher": {"io": "output", "path": "x"}}}
    other = theirs("torchdistill.losses.mid_level", "ATLoss", pairs, mode=variant)
    student, teacher = torch.randn(6, 3, 4, 5), torch.randn(6, 8, 4, 5)
    ours = functools.partial(at, variant=variant)
    same(ours, lambda s, t: other(tapped(x=s), tapped(x=t)), student, teacher)


def test_maps_of_zeros_attend_nowhere() -> None:
    student = torch.zeros(2, 3, 2, 2, requires_grad=True)
    at(student, torch.randn(2, 3, 2, 2)).backward()
    assert student.grad is not None
    assert student.grad.count_nonzero() == 0
    assert at(student, torch.ones(2, 3, 2, 2)).item() == 1


def test_what_is_refused() -> None:
    maps = torch.zeros(4, 3, 8, 8)
    with pytest.raises(TransferError, match=r"at: .*same height and width.*pool the larger one first"):
        at(maps, torch.zeros(4, 3, 4, 4))
    with pytest.raises(TransferError, match=r"at: wanted feature maps \(n, channels, height, width\)"):
        at(maps.flatten(1), maps.flatten(1))
    with pytest.raises(TransferError, match="at: wanted variant 'paper' or 'code', got 'sum'"):
        at(maps, maps, variant="sum")  # type: ignore[arg-type]
