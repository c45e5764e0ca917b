"""`mgd` against a sum of squares entry by entry, and in its use with a mask and a generator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._mgd import mgd
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow(student_generated: Tensor, teacher: Tensor) -> Tensor:
    pairs = zip(student_generated.flatten(), teacher.flatten(), strict=True)
    return torch.stack([(g - t) ** 2 for g, t in pairs]).sum() / len(teacher)


TRIALS = (
    loss_trial(
        mgd,
        (torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)),
        tags=Tags(rotation_invariant=False),
        reference=slow,
        limits={"one apart": lambda fn: (fn(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)), 48.0)},
        examples=8,
    ),
    loss_trial(mgd, (torch.randn(4, 6), torch.randn(4, 6)), reference=slow, name="mgd of vectors", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_modelopt_takes_the_mean_where_the_paper_sums() -> None:
    other = theirs("modelopt.torch.distill.losses", "MGDLoss", 3, 3).double()
    student, teacher = torch.randn(2, 4, 3, 6, 6)

    def masked(s: Tensor, t: Tensor) -> Tensor:
        torch.manual_seed(0)
        mask = torch.where(torch.rand(4, 1, 6, 6) > 1 - 0.65, 0, 1)
        return mgd(other.generation(mask * s), t)

    def their_mean(s: Tensor, t: Tensor) -> Tensor:
        torch.manual_seed(0)
        return 3 * 6 * 6 * other(s, t)

    same(masked, their_mean, student, teacher)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(TransferError, match=r"mgd: .*student_generated \(4, 3, 2, 2\) float32 and teacher \(4, 5,"):
        mgd(torch.zeros(4, 3, 2, 2), torch.zeros(4, 5, 2, 2))
