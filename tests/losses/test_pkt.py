"""`pkt` against the paper's probabilities, and against the authors' code."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._pkt import pkt
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks

EPS = 1e-7


def kernel(x: Tensor) -> list[list[Tensor]]:
    rows = [row / row.norm() if row.norm() > 0 else row for row in x.flatten(1)]
    return [[(sum((u * v for u, v in zip(a, b, strict=True)), x.new_zeros(())) + 1) / 2 for b in rows] for a in rows]


def slow(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = kernel(student), kernel(teacher)
    n = len(s)
    total = student.new_zeros(())
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for j in others:
            q = (s[i][j] + EPS) / sum(s[i][k] + EPS for k in others)
            p = (t[i][j] + EPS) / sum(t[i][k] + EPS for k in others)
            total = total + p * (p / q).log()
    return total / n**2


def slow_code(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = kernel(student), kernel(teacher)
    n = len(s)
    total = student.new_zeros(())
    for i in range(n):
        for j in range(n):
            q, p = s[i][j] / sum(s[i]), t[i][j] / sum(t[i])
            total = total + p * ((p + EPS) / (q + EPS)).log()
    return total / n**2


X = torch.eye(2)[[0, 1, 0]]
CODE = functools.partial(pkt, variant="code")
TRIALS = (
    loss_trial(
        pkt,
        (torch.randn(4, 6), torch.randn(4, 6)),  # in the plane some are nearly opposite, where the slope bends sharply
        reference=slow,
        limits={"exchanged": lambda fn: (fn(X, X[[0, 2, 1]]), math.log(2) / 18)},
        examples=8,
    ),
    loss_trial(
        CODE,
        reference=slow_code,
        name="pkt of the code",
        expected_failed_checks={"stationary": "the code's eps inside the logarithm leaves a pull of its size"},
        examples=8,
    ),
    loss_trial(
        pkt,
        (torch.randn(4, 2, 2, 2), torch.randn(4, 2, 2, 2)),
        tags=Tags(rotation_invariant=False),
        name="pkt of maps",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_the_code() -> None:
    # They add eps to norms too, which does not count beside large ones.
    student, teacher = 1e6 * torch.randn(7, 5).double(), 1e6 * torch.randn(7, 9).double()
    td = theirs("torchdistill.losses.mid_level", "PKTLoss", "x", "output", "x", "output")
    same(CODE, lambda s, t: td(tapped(x=s), tapped(x=t)), student, teacher)
    same(functools.partial(CODE, eps=1e-6), theirs("zhijian.models.kd.loss.pkt", "PKTCosSim"), student, teacher)


def test_few_examples_have_no_choice() -> None:
    student, teacher = torch.randn(2, 2, 5)
    assert abs(pkt(student, teacher).item()) < 1e-7
    assert pkt(student[:1], teacher[:1]).item() == 0
    assert CODE(student[:1], teacher[:1]).item() == 0


def test_opposite_examples_are_finite() -> None:
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    slope = torch.func.grad(pkt)(student, torch.ones(3, 1))
    assert slope.isfinite().all()
    # The two that are together never pick the first, which the teacher has them do half of the time.
    wanted = 2 * (0.5 * math.log(0.5 / EPS) + 0.5 * math.log(0.5)) / 9
    assert pkt(student, torch.ones(3, 1)).item() == pytest.approx(wanted, rel=1e-3)


def test_what_is_refused() -> None:
    with pytest.raises(TransferError, match=r"pkt: wanted features of the same rows"):
        pkt(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(TransferError, match="pkt: wanted variant 'paper' or 'code', got 'mean'"):
        pkt(torch.zeros(3, 2), torch.zeros(3, 2), variant="mean")  # type: ignore[arg-type]
