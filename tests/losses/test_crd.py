"""`crd` and `crd_in_batch` against their formulas in slow loops."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._crd import crd, crd_in_batch
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(
    student: Tensor,
    teacher: Tensor,
    memory_s: Tensor,
    memory_t: Tensor,
    size: float,
    z_s: float | None = None,
    z_t: float | None = None,
    temperature: float = 0.07,
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for anchors, memory, z in ((student, memory_t, z_s), (teacher, memory_s, z_t)):
        odds = [
            [((a / a.norm()) * row).sum().div(temperature).exp() for row in rows]
            for a, rows in zip(anchors, memory, strict=True)
        ]
        z = float(torch.stack([x for row in odds for x in row]).mean()) * size if z is None else z
        noise = (memory.shape[1] - 1) / size
        for first, *others in odds:
            total = total - (first / z / (first / z + noise)).log()
            total = total - sum(((noise / (x / z + noise)).log() for x in others), torch.zeros(()))
    return total / len(student)


def slow_in_batch(student: Tensor, teacher: Tensor, temperature: float = 0.07) -> Tensor:
    s, t = ([row / row.norm() for row in x] for x in (student, teacher.detach()))
    total = torch.zeros((), dtype=torch.float64)
    for xs, ys in ((s, t), (t, s)):
        for i, x in enumerate(xs):
            scores = [(x * y).sum() / temperature for y in ys]
            total = total - scores[i] + torch.stack(scores).logsumexp(0)
    return total / (2 * len(s))


EMBEDDED = (torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 6, 3), torch.randn(4, 6, 3))
ONCE = "the first batch's constant is held, as the paper does"
TRIALS = (
    loss_trial(
        functools.partial(crd, size=50, z_s=30.0, z_t=7.0, temperature=0.5),
        EMBEDDED,
        reference=functools.partial(slow, size=50, z_s=30.0, z_t=7.0, temperature=0.5),
        examples=8,
    ),
    loss_trial(
        functools.partial(crd, size=50),
        EMBEDDED,
        reference=functools.partial(slow, size=50),
        name="crd of the first batch",
        expected_failed_checks={"gradcheck": ONCE},
        examples=8,
    ),
    loss_trial(
        crd_in_batch,
        (torch.randn(4, 3), torch.randn(4, 3)),
        reference=slow_in_batch,
        limits={"rows equal": lambda fn: (fn(torch.ones(5, 2), torch.ones(5, 2)), math.log(5))},
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def drawn(n: int = 6, size: int = 20, negatives: int = 7) -> tuple[Tensor, ...]:
    """Embeddings, both memories, and the rows that are taken."""
    student, teacher, *memories = (torch.randn(k, 5, dtype=torch.float64) for k in (n, n, size, size))
    memory_s, memory_t = (F.normalize(memory) for memory in memories)
    own = torch.arange(n)[:, None]
    return student, teacher, memory_s, memory_t, torch.cat([own, torch.randint(size, (n, negatives))], 1)


def test_beside_torchdistill() -> None:
    student, teacher, memory_s, memory_t, rows = drawn()

    def other(s: Tensor, t: Tensor) -> Tensor:
        loss = theirs("torchdistill.losses.mid_level", "CRDLoss", "norm", "empty", "norm", 5, 20, 7, 20, eps=0.0)
        loss.double().memory_v1.copy_(memory_s)
        loss.memory_v2.copy_(memory_t)
        read = {"empty": {"input": {"pos_idx": rows[:, 0], "contrast_idx": rows}}}
        return loss({**tapped(norm=F.normalize(s)), **read}, tapped(norm=F.normalize(t))).squeeze()

    def ours(s: Tensor, t: Tensor) -> Tensor:
        # It is rounded to float32, as a buffer made of Python numbers.
        return crd(s, t, memory_s[rows], memory_t[rows], size=20, temperature=float(torch.tensor(0.07)))

    same(ours, other, student, teacher)


def test_torchdistill_cannot_draw_negatives_itself() -> None:
    student, teacher, _, _, rows = drawn()
    loss = theirs("torchdistill.losses.mid_level", "CRDLoss", "norm", "empty", "norm", 5, 20, 7, 20)
    read = {"empty": {"input": {"pos_idx": rows[:, 0]}}}
    with pytest.raises(AttributeError, match="prob"):
        loss({**tapped(norm=student.float()), **read}, tapped(norm=teacher.float()))


def test_beside_zhijian() -> None:
    student, teacher, memory_s, memory_t, rows = drawn()

    def other(s: Tensor, t: Tensor) -> Tensor:
        loss = theirs("zhijian.models.kd.loss.crd", "CRD", 5, 5, 5, 7, 0.07, 0.5, 20).double()
        loss.contrast.memory_s.copy_(memory_s)
        loss.contrast.memory_t.copy_(memory_t)
        loss.criterion_s.eps = loss.criterion_t.eps = 0.0
        out_s, out_t = loss.contrast(F.normalize(s), F.normalize(t), rows[:, 0], rows)
        return loss.criterion_s(out_s) + loss.criterion_t(out_t)

    same(lambda s, t: crd(s, t, memory_s[rows], memory_t[rows], size=20), other, student, teacher)


def test_both_embeddings_learn() -> None:
    student, teacher, memory_s, memory_t, rows = drawn()
    slopes = torch.func.grad(lambda s, t: crd(s, t, memory_s[rows], memory_t[rows], size=20), (0, 1))(student, teacher)
    assert all(slope.count_nonzero() > 0 for slope in slopes)


def test_a_direction_is_cross_entropy_with_the_diagonal() -> None:
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    scores = F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).mT / 0.2
    own = torch.arange(6)
    wanted = (F.cross_entropy(scores, own) + F.cross_entropy(scores.mT, own)) / 2
    torch.testing.assert_close(crd_in_batch(student, teacher, temperature=0.2), wanted)


def test_what_is_refused() -> None:
    x, memory = torch.zeros(4, 3), torch.zeros(4, 6, 3)
    for wrong in itertools.chain((memory[:, :1], memory[:3], memory[..., :2], memory[:, 0])):
        with pytest.raises(
            TransferError, match=r"crd: wanted embeddings \(n, d\) and memories \(n, 1 \+ negatives, d\)"
        ):
            crd(x, x, memory, wrong, size=9)
    with pytest.raises(TransferError, match="crd: wanted tensors of one shape"):
        crd(x, x[:, :2], memory, memory, size=9)
    with pytest.raises(TransferError, match=r"crd_in_batch: wanted embeddings \(n, d\)"):
        crd_in_batch(memory, memory)
