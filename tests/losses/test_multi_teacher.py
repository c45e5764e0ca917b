"""Several teachers against `kd` with each."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._multi_teacher import max_logits, mean_logits, mean_probabilities, multi_teacher_kd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teachers: Tensor, weights: Tensor | None = None) -> Tensor:
    k, n = teachers.shape[:2]
    total = torch.zeros((), dtype=student.dtype)
    for e in range(k):
        for i in range(n):
            weight = 1 / k if weights is None else weights[e].item() if weights.ndim == 1 else weights[e, i].item()
            log_p, log_q = (teachers[e, i].detach() / 4).log_softmax(0), (student[i] / 4).log_softmax(0)
            for a, b in zip(log_p, log_q, strict=True):
                total = total + 16 * weight * a.exp() * (a - b) / n
    return total


SAMPLE = (torch.randn(4, 3), torch.randn(2, 4, 3))
TRIALS = (
    loss_trial(multi_teacher_kd, SAMPLE, reference=slow),
    loss_trial(
        multi_teacher_kd, (*SAMPLE, torch.tensor([0.5, 2.0])), reference=slow, name="teachers weighed", examples=8
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    return student, torch.randn(3, 6, 5, dtype=torch.float64, generator=generator) * 2


def test_it_is_the_mean_of_kd() -> None:
    student, teachers = case()
    expected = torch.stack([kd(student, t) for t in teachers])
    torch.testing.assert_close(multi_teacher_kd(student, teachers), expected.mean(), rtol=1e-12, atol=0)
    weights = torch.tensor([0.2, 0.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(multi_teacher_kd(student, teachers, weights), weights @ expected, rtol=1e-12, atol=0)


def test_classes_may_be_numbered_otherwise() -> None:
    student, teachers = case()
    order = [3, 0, 4, 1, 2]
    got = multi_teacher_kd(student[:, order], teachers[:, :, order])
    torch.testing.assert_close(got, multi_teacher_kd(student, teachers), rtol=1e-12, atol=0)


def test_weights_by_row() -> None:
    student, teachers = case()
    weights = torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = [[kd(student[i : i + 1], t[i : i + 1]) for i in range(6)] for t in teachers]
    expected = sum(weights[e, i] * rows[e][i] for e in range(3) for i in range(6)) / 6
    torch.testing.assert_close(multi_teacher_kd(student, teachers, weights), torch.as_tensor(expected))
    torch.testing.assert_close(slow(student, teachers, weights), torch.as_tensor(expected))


def test_the_gradient_is_that_of_the_mean_prediction() -> None:
    student, teachers = case()
    mean = mean_probabilities(teachers, temperature=4.0)
    torch.testing.assert_close(
        grad(multi_teacher_kd)(student, teachers), grad(kd)(student, mean), rtol=1e-9, atol=1e-13
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_mean_probabilities_are_those_of_the_softmax(temperature: float) -> None:
    _, teachers = case()
    expected = torch.stack([(t / temperature).softmax(1) for t in teachers]).mean(0)
    got = mean_probabilities(teachers, temperature=temperature)
    torch.testing.assert_close((got / temperature).softmax(1), expected, rtol=1e-11, atol=0)
    assert mean_probabilities(teachers * 1e3).isfinite().all()


def test_one_of_several() -> None:
    _, teachers = case()
    for i in range(6):
        for j in range(5):
            column = [t[i, j].item() for t in teachers]
            assert mean_logits(teachers)[i, j].item() == pytest.approx(math.fsum(column) / 3, rel=1e-12)
            assert max_logits(teachers)[i, j].item() == max(column)


@pytest.mark.parametrize("fn", [mean_logits, max_logits, mean_probabilities])
def test_maps_modes_and_dtypes(fn: Callable[[Tensor], Tensor]) -> None:
    maps = torch.randn(2, 3, 4, 5, 5)
    assert fn(maps).shape == (3, 4, 5, 5)
    assert fn(maps.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(vmap(fn)(maps[:, None].transpose(0, 1))[0], fn(maps))
    torch.testing.assert_close(torch.compile(fn, backend="aot_eager", fullgraph=True)(maps), fn(maps))


def test_errors() -> None:
    student, teachers = torch.zeros(4, 3), torch.zeros(2, 4, 3)
    with pytest.raises(TransferError, match=r"multi_teacher_kd: wanted a student \(n, classes\) and teachers"):
        multi_teacher_kd(student[:3], teachers)
    with pytest.raises(TransferError, match=r"multi_teacher_kd: wanted weights \(k,\) or \(k, n\)"):
        multi_teacher_kd(student, teachers, torch.ones(4))
    with pytest.raises(TransferError, match=r"mean_logits: wanted teachers \(k, n, classes, \.\.\.\)"):
        mean_logits(student)
    with pytest.raises(TransferError, match=r"max_logits: wanted floating tensors"):
        max_logits(teachers.long())
