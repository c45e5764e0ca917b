"""`fitnet` against a mean of squares entry by entry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._fitnet import fitnet
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor) -> Tensor:
    pairs = list(zip(student.flatten(), teacher.flatten(), strict=True))
    return torch.stack([(s - t) ** 2 for s, t in pairs]).sum() / len(pairs)


TRIALS = (
    loss_trial(
        fitnet,
        reference=slow,
        limits={"one apart": lambda fn: (fn(torch.ones(3, 2), torch.zeros(3, 2)), 1.0)},
        examples=8,
    ),
    loss_trial(
        fitnet,
        (torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)),
        tags=Tags(rotation_invariant=False),
        reference=slow,
        name="fitnet of maps",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_others() -> None:
    inputs = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    same(fitnet, F.mse_loss, *inputs)
    same(fitnet, theirs("zhijian.models.kd.loss.fitnet", "Hint"), *inputs)


def test_half_precision_is_summed_in_float32() -> None:
    student, teacher = torch.full((1, 4096), 128.0, dtype=torch.float16), torch.zeros(1, 4096, dtype=torch.float16)
    assert fitnet(student, teacher).item() == 128**2
    assert fitnet(student, teacher).dtype == torch.float16


def test_other_shapes_are_refused() -> None:
    with pytest.raises(TransferError, match=r"fitnet: .*student \(4, 3\) float32 and teacher \(4, 5\) float32"):
        fitnet(torch.zeros(4, 3), torch.zeros(4, 5))
