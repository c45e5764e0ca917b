"""`cc` and `cc_bilinear` against the paper's kernels, entry by entry."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._cc import cc, cc_bilinear
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def inner(a: Tensor, b: Tensor) -> Tensor:
    return sum((u * v for u, v in zip(a, b, strict=True)), a.new_zeros(()))


def table(x: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    rows = x.flatten(1)
    return [kernel(a, b) for a in rows for b in rows]


def squared(one: list[Tensor], other: list[Tensor]) -> Tensor:
    return torch.stack([(a - b) ** 2 for a, b in zip(one, other, strict=True)]).mean()


def slow(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        lengths = a.norm() * b.norm()
        cosine = inner(a, b) / lengths if lengths > 0 else a.new_zeros(())
        terms = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms)

    return squared(table(student, kernel), table(teacher, kernel))


def slow_bilinear(student: Tensor, teacher: Tensor) -> Tensor:
    return squared(table(student, inner), table(teacher, inner))


X = torch.eye(2)
TRIALS = (
    loss_trial(
        cc,
        reference=slow,
        limits={"strangers": lambda fn: (fn(X, X[[0, 0]]), (1.12 * math.exp(-0.8)) ** 2 / 2)},
        examples=8,
    ),
    loss_trial(
        functools.partial(cc, gamma=0.7, order=4),
        reference=functools.partial(slow, gamma=0.7, order=4),
        name="cc of order 4",
        examples=8,
    ),
    loss_trial(
        cc_bilinear,
        reference=slow_bilinear,
        limits={"strangers": lambda fn: (fn(X, X[[0, 0]]), 0.5)},
        examples=8,
    ),
    loss_trial(
        cc,
        (torch.randn(4, 2, 2, 2), torch.randn(4, 2, 2, 2)),
        tags=Tags(rotation_invariant=False),
        name="cc of maps",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def cckd(student: Tensor, teacher: Tensor, **kernel: object) -> Tensor:
    other = theirs("torchdistill.losses.mid_level", "CCKDLoss", "x", "x", kernel, "batchmean")
    return other(tapped(x=student), tapped(x=teacher))


def test_beside_zhijian() -> None:
    other = theirs("zhijian.models.kd.loss.cc", "CC", gamma=0.4, P_order=2)
    same(cc, other, torch.randn(7, 5), torch.randn(7, 9))


def test_torchdistill_takes_a_root_that_the_paper_does_not() -> None:
    student, teacher = torch.randn(7, 5).double(), torch.randn(7, 9).double()
    same(lambda s, t: cc_bilinear(s, t).sqrt() / 7, functools.partial(cckd, type="bilinear"), student, teacher)


def test_torchdistill_leaves_rows_their_lengths() -> None:
    student, teacher = torch.randn(2, 7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gaussian = functools.partial(cckd, type="gaussian", gamma=0.4, max_p=2)
    units = [x / x.norm(dim=1, keepdim=True) for x in (student, teacher)]
    assert torch.allclose(gaussian(*units), cc(student, teacher).sqrt() / 7, rtol=1e-12)
    assert gaussian(student, teacher).item() == pytest.approx(5.4835, rel=1e-4)
    assert cc(student, teacher).item() == pytest.approx(0.0075675, rel=1e-4)


def test_the_series_goes_to_the_gaussian() -> None:
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64)

    def kernel(x: Tensor) -> Tensor:
        x = x / x.norm(dim=1, keepdim=True)
        return (-0.4 * torch.cdist(x, x).square()).exp()

    whole = (kernel(student) - kernel(teacher)).square().mean()
    assert torch.allclose(cc(student, teacher, order=12), whole, rtol=1e-8)


def test_a_width_may_be_learned() -> None:
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64)
    gamma = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: cc(student, teacher, gamma=g), gamma)


def test_what_is_refused() -> None:
    with pytest.raises(TransferError, match=r"cc: wanted features of the same rows"):
        cc(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(TransferError, match=r"cc_bilinear: wanted features of the same rows"):
        cc_bilinear(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(TransferError, match="cc: wanted an order of at least 1, got 0"):
        cc(torch.zeros(3, 2), torch.zeros(3, 2), order=0)
