"""`afd` and `afd_channels` against their formulas in slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._afd import afd, afd_channels
from ttransfer.testing import loss_trial, parametrize_with_checks


def where_to_look(image: Tensor, height: int, width: int) -> list[Tensor]:
    """Mean squares over channels, over blocks of positions, to length 1."""
    rows, columns = image.shape[1] // height, image.shape[2] // width
    blocks = [
        torch.stack([(x[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] ** 2).mean() for x in image]).mean()
        for i in range(height)
        for j in range(width)
    ]
    length = torch.stack(blocks).norm()
    return [block / length for block in blocks]


def slow(student: Tensor, teacher: Tensor, query: Tensor, key: Tensor, position: Tensor | None = None) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(query)):
        for t, wanted in enumerate(teacher[i].detach()):
            products = []
            for s in range(student.shape[1]):
                k = key[i, s, t] if key.ndim == 4 else key[i, s]
                product = sum((a * b for a, b in zip(query[i, t], k, strict=True)), torch.zeros(()))
                products.append((product + (0 if position is None else position[t, s])) / math.sqrt(query.shape[2]))
            odds = [p.exp() for p in products]
            for s, weight in enumerate(odds):
                target = where_to_look(wanted, *wanted.shape[1:])
                found = where_to_look(student[i, s], *wanted.shape[1:])
                gap = torch.stack([(a - b) ** 2 for a, b in zip(found, target, strict=True)]).mean()
                total = total + weight / torch.stack(odds).sum() * gap
    return total / len(query)


def slow_channels(student: Tensor, teacher: Tensor, attention: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for s, t, weights in zip(student, teacher.detach(), attention, strict=True):
        for a, b, weight in zip(s, t, weights, strict=True):
            total = total + weight * ((a / a.norm() - b / b.norm()) ** 2).mean()
    return total / len(student)


def maps(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(4, *shape) for shape in shapes]


STUDENT, TEACHER = torch.randn(4, 2, 3, 2, 4), torch.randn(4, 3, 5, 1, 2)
TRIALS = (
    loss_trial(
        afd, (STUDENT, TEACHER, torch.randn(4, 3, 6), torch.randn(4, 2, 6)), reference=slow, name="afd", examples=8
    ),
    loss_trial(
        afd,
        (STUDENT, TEACHER, torch.randn(4, 3, 5), torch.randn(4, 2, 3, 5), torch.randn(3, 2)),
        reference=slow,
        name="afd with positions",
        examples=8,
    ),
    loss_trial(
        afd_channels,
        (*maps((3, 2, 2), (3, 2, 2)), torch.randn(4, 3).softmax(1)),
        reference=slow_channels,
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_layers_may_differ_in_everything() -> None:
    student, teacher = maps((3, 8, 8), (5, 4, 4)), maps((2, 4, 4), (7, 2, 2), (7, 2, 2))
    query, key = torch.randn(4, 3, 6), torch.randn(4, 2, 6)
    by_one = [afd(student, [t], query[:, [i]], key) for i, t in enumerate(teacher)]
    torch.testing.assert_close(afd(student, teacher, query, key), torch.stack(by_one).sum())


def test_attention_of_one_layer_is_all_of_it() -> None:
    student, teacher = maps((3, 4, 4)), maps((5, 4, 4))
    some = [afd(student, teacher, torch.randn(4, 1, 6) * scale, torch.randn(4, 1, 6)) for scale in (0.0, 9.0)]
    torch.testing.assert_close(*some)


def test_channels_beside_zhijian() -> None:
    other = theirs("zhijian.models.kd.loss.afd", "AFD", 4, 1.0).double()
    student, teacher = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    rho = other.attention(teacher.double().mean((2, 3), keepdim=True)).flatten(1).sigmoid().detach()
    rho = rho / rho.sum(1, keepdim=True)
    same(lambda s, t: afd_channels(s, t, rho), lambda s, t: other(s, t, eps=0.0), student, teacher)


def test_what_is_refused() -> None:
    student, query, key = maps((3, 4, 4)), torch.zeros(4, 1, 6), torch.zeros(4, 1, 6)
    with pytest.raises(TransferError, match=r"afd: wanted the student's maps of several layers.*\(4, 3, 4, 4\)"):
        afd(student[0], student, query, key)
    with pytest.raises(TransferError, match="afd: wanted the teacher's maps of several layers"):
        afd(student, [], query, key)
    with pytest.raises(TransferError, match=r"wanted queries \(n, 1, d\) and keys \(n, 1, d\) for n = 4"):
        afd(student, student, query, key[..., :5])
    with pytest.raises(TransferError, match=r"wanted position \(1, 1\), got"):
        afd(student, student, query, key, torch.zeros(2, 1))
    with pytest.raises(TransferError, match="afd_channels: wanted one weight for each channel"):
        afd_channels(student[0], student[0], torch.ones(4, 2))
