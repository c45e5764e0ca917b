"""`irg` and `irg_transform` against their formulas in slow loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._irg import irg, irg_transform
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def relative(xs: list[Tensor]) -> list[Tensor]:
    largest = torch.stack(xs).max()
    return [x / largest for x in xs] if largest > 0 else xs


def mean_square(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    return torch.stack([(x - y) ** 2 for x, y in zip(xs, ys, strict=True)]).mean()


def slow(student: Tensor, teacher: Tensor) -> Tensor:
    def edges(x: Tensor) -> list[Tensor]:
        return relative([((a - b) ** 2).sum() for a in x for b in x])

    return mean_square(edges(student), edges(teacher.detach()))


def slow_transform(student: Tensor, student_next: Tensor, teacher: Tensor, teacher_next: Tensor) -> Tensor:
    def moved(first: Tensor, second: Tensor) -> list[Tensor]:
        times, (height, width) = second.shape[1] // first.shape[1], second.shape[2:]
        down, along = first.shape[2] // height, first.shape[3] // width
        out = []
        for a, b in zip(first, second, strict=True):
            total = torch.zeros((), dtype=torch.float64)
            for c in range(a.shape[0]):
                for i in range(height):
                    for j in range(width):
                        early = a[c, i * down : (i + 1) * down, j * along : (j + 1) * along].mean()
                        total = total + (early - b[c * times : (c + 1) * times, i, j].mean()) ** 2
            out.append(total)
        return relative(out)

    return mean_square(moved(student, student_next), moved(teacher.detach(), teacher_next.detach()))


TRIALS = (
    loss_trial(irg, (torch.randn(4, 3), torch.randn(4, 3)), reference=slow, examples=8),
    loss_trial(
        irg,
        (torch.randn(4, 2, 2, 3), torch.randn(4, 5)),
        tags=Tags(zero_at_equality=False, symmetric=False),
        reference=slow,
        name="irg of a map and a vector",
        examples=8,
    ),
    loss_trial(
        irg_transform,
        (torch.randn(4, 2, 4, 2), torch.randn(4, 4, 2, 2), torch.randn(4, 2, 4, 2), torch.randn(4, 4, 2, 2)),
        reference=slow_transform,
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_zhijian() -> None:
    other = theirs("zhijian.models.kd.loss.irg", "IRG", 0.0, 1.0, 0.0)
    student, teacher = torch.randn(6, 5), torch.randn(6, 9)

    def edges(s: Tensor, t: Tensor) -> Tensor:
        # One layer in the place of all three; the transformation has no weight.
        layers = [[x[:, :, None, None], x[:, :, None, None], x, x[:, :1]] for x in (s, t)]
        return other(*layers)

    same(irg, edges, student, teacher)


def test_transform_beside_zhijian() -> None:
    other = theirs("zhijian.models.kd.loss.irg", "IRG", 0.0, 0.0, 1.0)
    maps = torch.randn(6, 2, 8, 8), torch.randn(6, 4, 4, 4), torch.randn(6, 3, 8, 8), torch.randn(6, 3, 4, 4)

    def changes(s: Tensor, s_next: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return other([s, s_next, s.flatten(1), s[:, 0, 0]], [t, t_next, t.flatten(1), t[:, 0, 0]])

    same(irg_transform, changes, *maps)


def test_rows_that_coincide_have_no_edges() -> None:
    x, other = torch.full((5, 3), 0.1), torch.randn(5, 3)
    assert irg(x, x).item() == 0
    far = irg(other, torch.zeros_like(other))
    torch.testing.assert_close(irg(other, x), far)  # rounding is not blown up
    zhijian = theirs("zhijian.models.kd.loss.irg", "IRG", 0.0, 1.0, 0.0)
    assert zhijian.euclidean_dist_feat(x, squared=True).unique().tolist() == [0.0, 1.0]  # all as far as can be


def test_what_is_refused() -> None:
    with pytest.raises(TransferError, match="irg: wanted features of the same rows"):
        irg(torch.zeros(4, 3), torch.zeros(5, 3))
    maps = torch.zeros(4, 2, 4, 4)
    with pytest.raises(TransferError, match=r"irg_transform: wanted a later map with a multiple of the channels"):
        irg_transform(maps, torch.zeros(4, 3, 4, 4), maps, maps)
