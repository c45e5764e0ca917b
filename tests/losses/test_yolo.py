"""`yolo_kd` against slow loops."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

import ttransfer as tt
from ttransfer._claims import claims_of
from ttransfer._errors import TransferError
from ttransfer.losses._yolo import yolo_kd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow_yolo_kd(
    student: Tensor, teacher: Tensor, box: float = 0.05, objectness: float = 1.0, classes: float = 0.5
) -> Tensor:
    total, number = torch.zeros((), dtype=student.dtype), 0
    for q in itertools.product(*map(range, student.shape[:4])):
        s, t = student[q], teacher[q].detach()
        by = 1 / (1 + math.exp(-t[4].item()))
        for i in range(len(s)):
            weight = box / 4 if i < 4 else objectness if i == 4 else classes / (len(s) - 5)
            total = total + by * weight * (s[i] - t[i]) ** 2
        number += 1
    return total / number


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


STRONG = {"box": 1.5, "objectness": 0.5, "classes": 0.7}
EXAMPLE = (maps(3, 2, 1, 2, 7), maps(3, 2, 1, 2, 7, seed=1))
TRIALS = (
    loss_trial(yolo_kd, EXAMPLE, reference=slow_yolo_kd, examples=8),
    loss_trial(
        functools.partial(yolo_kd, **STRONG),
        EXAMPLE,
        reference=functools.partial(slow_yolo_kd, **STRONG),
        name="yolo_kd of other weights",
        examples=6,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_scales_are_summed_and_counted_by_images() -> None:
    students = [maps(2, 3, s, s, 8).double() for s in (4, 2, 1)]
    teachers = [maps(2, 3, s, s, 8, seed=1).double() for s in (4, 2, 1)]
    expected = torch.stack([slow_yolo_kd(s, t) for s, t in zip(students, teachers, strict=True)]).sum()
    torch.testing.assert_close(yolo_kd(students, teachers), expected, rtol=1e-12, atol=0)
    known = claims_of(yolo_kd)
    assert known.count is not None
    assert known.count(students, teachers) == known.count(students[0], teachers[0]) == 2
    halves = [yolo_kd([s[i : i + 1] for s in students], [t[i : i + 1] for t in teachers]) for i in (0, 1)]
    torch.testing.assert_close(sum(halves) / 2, expected, rtol=1e-12, atol=0)


def test_where_the_teacher_sees_nothing_nothing_is_learned() -> None:
    s, t = EXAMPLE
    t = t.clone()
    t[..., 4] = -200.0
    assert yolo_kd(s, t).item() == 0
    assert grad(yolo_kd)(s, t).count_nonzero() == 0


def test_a_detector_without_classes() -> None:
    s, t = (x[..., :5].double() for x in EXAMPLE)
    torch.testing.assert_close(yolo_kd(s, t), slow_yolo_kd(s, t), rtol=1e-12, atol=0)


def test_a_term_reads_lists_of_scales() -> None:
    term = tt.term(yolo_kd, ["student(x).a", "student(x).b"], ["teacher(x).a", "teacher(x).b"], box=0.1)
    assert not term.coupled
    assert "box" in term.hyper


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"yolo_kd: wanted as many scales of the teacher .* got 1 and 2"):
        yolo_kd(list(EXAMPLE), [EXAMPLE[0]])
    with pytest.raises(TransferError, match=r"yolo_kd: wanted maps \(n, anchors, h, w, 5 \+ classes\), got .* 4\)"):
        yolo_kd(EXAMPLE[0][..., :4], EXAMPLE[1][..., :4])
    with pytest.raises(TransferError, match=r"yolo_kd: wanted tensors of one shape"):
        yolo_kd(EXAMPLE[0], EXAMPLE[1][:, :1])
