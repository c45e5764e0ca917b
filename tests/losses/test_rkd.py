"""`rkd_distance`, `rkd_angle` and their sum against the paper's pairs and triplets."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._rkd import rkd, rkd_angle, rkd_distance
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def huber(x: Tensor) -> Tensor:
    return x**2 / 2 if x.abs() <= 1 else x.abs() - 0.5


def length(x: Tensor) -> Tensor:
    squares = sum((u**2 for u in x.flatten()), x.new_zeros(()))
    return squares.sqrt() if squares > 0 else squares


def slow_distance(student: Tensor, teacher: Tensor) -> Tensor:
    def relative(x: Tensor) -> dict[tuple[int, int], Tensor]:
        lengths = {(i, j): length(x[i] - x[j]) for i, j in itertools.permutations(range(len(x)), 2)}
        mean = sum(lengths.values(), x.new_zeros(())) / max(len(lengths), 1)
        return {pair: d / mean if mean > 0 else d for pair, d in lengths.items()}

    s, t = relative(student), relative(teacher)
    return sum((huber(s[pair] - t[pair]) for pair in s), student.new_zeros(())) / len(student) ** 2


def slow_angle(student: Tensor, teacher: Tensor) -> Tensor:
    def cosine(x: Tensor, i: int, j: int, k: int) -> Tensor:
        one, other = x[j] - x[i], x[k] - x[i]
        lengths = length(one) * length(other)
        return (one * other).sum() / lengths if lengths > 0 else lengths

    n = len(student)
    total = student.new_zeros(())
    for i, j, k in itertools.product(range(n), repeat=3):
        total = total + huber(cosine(student, i, j, k) - cosine(teacher, i, j, k))
    return total / n**3


def slow(student: Tensor, teacher: Tensor) -> Tensor:
    return 25 * slow_distance(student, teacher) + 50 * slow_angle(student, teacher)


LINE, TRIANGLE = torch.tensor([[0.0], [1.0], [2.0]]), torch.eye(3)
MAPS = (torch.randn(4, 2, 2, 2), torch.randn(4, 2, 2, 2))
TRIALS = (
    loss_trial(
        rkd_distance,
        reference=slow_distance,
        limits={"line and triangle": lambda fn: (fn(LINE, TRIANGLE), 3 / 72)},
        examples=8,
    ),
    loss_trial(
        rkd_angle,
        reference=slow_angle,
        limits={"line and triangle": lambda fn: (fn(LINE, TRIANGLE), 2.5 / 27)},
        examples=8,
    ),
    loss_trial(rkd, reference=slow, examples=8),
    loss_trial(rkd, MAPS, tags=Tags(rotation_invariant=False), name="rkd of maps", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (25.0, 50.0)])
def test_beside_others(weights: tuple[float, float]) -> None:
    student, teacher = torch.randn(9, 5).double(), torch.randn(9, 12).double() + 100
    ours = functools.partial(rkd, distance=weights[0], angle=weights[1])
    td = theirs("torchdistill.losses.mid_level", "RKDLoss", "x", "x", *weights, "mean")
    same(ours, lambda s, t: td(tapped(x=s), tapped(x=t)), student, teacher)
    same(ours, theirs("zhijian.models.kd.loss.rkd", "RKD", *weights), student, teacher)


def test_the_sum_is_of_both() -> None:
    student, teacher = torch.randn(2, 6, 3, dtype=torch.float64)
    weights = torch.tensor([2.0, 0.5])
    both = rkd(student, teacher, distance=weights[0], angle=weights[1])
    assert torch.allclose(both, 2 * rkd_distance(student, teacher) + rkd_angle(student, teacher) / 2, rtol=1e-12)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, rkd])
def test_one_example_and_equal_examples(loss: Callable[..., Tensor]) -> None:
    other = theirs("zhijian.models.kd.loss.rkd", "RKD", 25.0, 50.0)
    one = torch.randn(1, 4)
    assert loss(one, 2 * one).item() == 0
    assert grad(loss)(one, one).count_nonzero() == 0
    assert math.isnan(other(one, one).item())
    equal = one.expand(5, 4)
    assert loss(equal, equal + 1).item() == 0
    assert grad(loss)(equal, torch.randn(5, 4)).count_nonzero() == 0


def test_in_float32_far_from_the_origin() -> None:
    student, teacher = torch.randn(2, 8, 4, dtype=torch.float64) + 300
    assert rkd(student.float(), teacher.float()).item() == pytest.approx(rkd(student, teacher).item(), rel=1e-3)


def clusters(spread: float) -> tuple[Tensor, Tensor]:
    """Sixteen examples in four clusters, and others for a teacher."""
    generator = torch.Generator().manual_seed(0)
    centres, noise, teacher = (torch.randn(n, 16, dtype=torch.float64, generator=generator) for n in (4, 16, 16))
    return 3 * centres.repeat(4, 1) + spread * noise, teacher


def miss(loss: Callable[..., Tensor], spread: float) -> float:
    """How far the gradient in float32 is from that in float64, as a part of it."""
    student, teacher = clusters(spread)
    wanted = grad(loss)(student, teacher)
    return ((grad(loss)(student.float(), teacher.float()) - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, rkd])
def test_tight_clusters_in_float32(loss: Callable[..., Tensor]) -> None:
    assert miss(loss, 1e-1) < 1e-5
    assert miss(loss, 1e-3) < 2e-3
    # By rounding alone they have no distances, and no directions.
    student, teacher = clusters(1e-7)
    assert grad(loss)(student.float(), teacher.float()).abs().max() < 1e3


def test_zhijians_distances_of_tight_clusters_are_rounding() -> None:
    assert miss(theirs("zhijian.models.kd.loss.rkd", "RKD", 1.0, 0.0), 1e-3) > 0.2


def test_other_rows_are_refused() -> None:
    for name, loss in (("rkd_distance", rkd_distance), ("rkd_angle", rkd_angle), ("rkd", rkd)):
        with pytest.raises(TransferError, match=rf"{name}: wanted features of the same rows"):
            loss(torch.zeros(3, 2), torch.zeros(4, 2))
