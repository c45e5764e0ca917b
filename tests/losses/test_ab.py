"""`ab` against the paper's cases, neuron by neuron."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._ab import ab
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    total = student.new_zeros(())
    for s, t in zip(student.flatten(), teacher.flatten(), strict=True):
        if t > 0 and s < margin:
            total = total + (s - margin) ** 2
        elif t <= 0 and s > -margin:
            total = total + (s + margin) ** 2
    return total / len(student)


TRIALS = (
    loss_trial(
        ab,
        reference=slow,
        limits={"silent": lambda fn: (fn(torch.zeros(2, 5), torch.zeros(2, 5)), 5.0)},
        examples=8,
    ),
    loss_trial(
        functools.partial(ab, margin=0.5),
        (torch.randn(4, 2, 2, 2), torch.randn(4, 2, 2, 2)),
        reference=functools.partial(slow, margin=0.5),
        name="ab of maps",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_others() -> None:
    student, teacher = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    pairs = {"pair": {"student": {"io": "output", "path": "x"}, "teacher": {"io": "output", "path": "x"}}}
    td = theirs("torchdistill.losses.mid_level", "AltActTransferLoss", pairs, 1.0, "mean")
    zj = theirs("zhijian.models.kd.loss.ab", "AB", 1.0)

    def dab(student: Tensor, teacher: Tensor) -> Tensor:
        # Their masks are float32, which float64 absorbs.
        return td(tapped(x=student), tapped(x=teacher))

    same(ab, dab, student, teacher)
    same(ab, lambda s, t: 3 * 5 * 5 * zj(s, t), student, teacher)


def test_nothing_is_left_a_margin_away() -> None:
    teacher = torch.randn(4, 6)
    far = torch.where(teacher > 0, 1.5, -1.5)
    assert ab(far, teacher).item() == 0
    assert ab(-far, teacher).item() == pytest.approx(6 * 2.5**2)


def test_a_margin_may_be_learned() -> None:
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64)
    margin = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: ab(student, teacher, margin=m), margin)


def test_a_teachers_neuron_at_0_does_not_fire() -> None:
    assert ab(torch.ones(1, 2), torch.tensor([[0.0, -0.0]])).item() == 8


def test_other_shapes_are_refused() -> None:
    with pytest.raises(TransferError, match=r"ab: .*student \(4, 3\) float32 and teacher \(4, 5\) float32"):
        ab(torch.zeros(4, 3), torch.zeros(4, 5))
