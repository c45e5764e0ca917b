"""`mdd` against a loop from the paper, and beside skada's."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.games import normal
from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align import mdd
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow(source: Tensor, target: Tensor, against: Tensor, other: Tensor, gamma: float = 4.0) -> Tensor:
    def terms(logits: Tensor, adversary: Tensor, far: bool) -> list[Tensor]:
        found = []
        for z, a in zip(logits, adversary, strict=True):
            p = a.exp() / a.exp().sum()
            best = max(range(len(z)), key=lambda c: z[c].item())
            found.append((1 - p[best]).log() if far else p[best].log())
        return found

    near, apart = terms(source, against, False), terms(target, other, True)
    zero = source.new_zeros(())
    return -gamma * sum(near, zero) / len(near) - sum(apart, zero) / len(apart)


EXAMPLE = {
    "source_logits": torch.randn(4, 3),
    "target_logits": torch.randn(5, 3),
    "source_adversary": torch.randn(4, 3),
    "target_adversary": torch.randn(5, 3),
}
SURE, EVEN = torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2)
TRIALS = (
    loss_trial(
        mdd,
        EXAMPLE,
        reference=slow,
        tags=Tags(detaches=("source_logits", "target_logits")),
        limits={"even": lambda fn: (fn(SURE, SURE, EVEN, EVEN), 5 * math.log(2))},
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def four(n: int, m: int) -> tuple[Tensor, ...]:
    return normal(0, n, 3), normal(1, m, 3), normal(2, n, 3), normal(3, m, 3)


def test_classes_may_be_numbered_otherwise() -> None:
    given = four(4, 5)
    assert mdd(*(x[:, torch.tensor([2, 0, 1])] for x in given)).item() == pytest.approx(mdd(*given).item(), rel=1e-12)


def test_maps_count_as_rows() -> None:
    source, target, against, other = normal(0, 2, 3, 4), normal(1, 3, 3, 4), normal(2, 2, 3, 4), normal(3, 3, 3, 4)
    flat = [x.movedim(1, -1).flatten(0, -2) for x in (source, target, against, other)]
    assert mdd(source, target, against, other).item() == pytest.approx(mdd(*flat).item(), rel=1e-12)


def test_skadas_is_right_for_one_target_row_alone() -> None:
    skada = theirs("skada.deep._adversarial", "MDDLoss", 4.0)
    skada.disc_criterion_t.smoothing = 0.0

    def other(a: Tensor, z: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return skada(z, y, a, b)

    z, y, a, b = four(5, 1)
    same(lambda a, z, y, b: mdd(z, y, a, b), other, a, z, y, b)
    z, y, a, _ = four(5, 6)
    b = 2 * y  # an adversary that agrees
    near = -4 * a.log_softmax(1).gather(1, z.argmax(1)[:, None]).mean()
    right, found = mdd(z, y, a, b) - near, other(a, z, y, b) - near
    assert (found / right).item() == pytest.approx(0.5, abs=0.2)
    pairs = torch.stack([(1 - b.softmax(1)[i, c]).log() for i in range(6) for c in y.argmax(1)])
    wrong = -4 * a.log_softmax(1).gather(1, z.argmax(1)[:, None]).mean() - pairs.mean()
    assert other(a, z, y, b).item() == pytest.approx(wrong.item(), rel=1e-9)


def test_a_sure_adversary_still_learns() -> None:
    """The logarithm of 1 - p taken after a softmax has no gradient there, or NaN."""
    target, sure = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[40.0, 0.0, 0.0]])
    assert mdd(target, target, target, sure, gamma=0.0).item() == pytest.approx(40 - math.log(2))
    slope = torch.func.grad(lambda a: mdd(target, target, target, a, gamma=0.0))(sure)
    assert slope.tolist()[0] == pytest.approx([1.0, -0.5, -0.5])
    plain = torch.func.grad(lambda a: -(1 - a.softmax(1)[:, 0] + 1e-6).log().mean())(sure)
    assert plain.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confident_logits(dtype: torch.dtype) -> None:
    z = torch.tensor([[1e3, -1e3, 0.0], [-1e3, 1e3, 0.0]], dtype=dtype)
    for adversary in (z, -z, 0 * z):
        value, slope = torch.func.grad_and_value(lambda a: mdd(z, z, a, a))(adversary)[::-1]
        assert value.isfinite()
        assert slope.isfinite().all()


def test_what_it_refuses() -> None:
    z, y, a, b = four(4, 5)
    with pytest.raises(TransferError, match=r"mdd: wanted both classifiers' logits of one shape in each domain"):
        mdd(z, y, b, b)
    with pytest.raises(TransferError, match=r"mdd: wanted logits \(n, classes, ...\)"):
        mdd(z[:, :1], y[:, :1], a[:, :1], b[:, :1])
