"""`mlld` against the paper's formulas in slow loops."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._mlld import mlld
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
) -> Tensor:
    n, classes = student.shape
    w = [1.0] * n if mask is None else mask.tolist()
    total = torch.zeros((), dtype=student.dtype)
    for temperature in temperatures:
        p, q = (student / temperature).softmax(1), (teacher.detach() / temperature).softmax(1)
        for i in range(n):
            log_q, log_p = (teacher[i].detach() / temperature).log_softmax(0), (student[i] / temperature).log_softmax(0)
            total = total + w[i] * temperature**2 * (q[i] * (log_q - log_p)).sum() / n
            for k in range(n):
                total = total + w[i] * (p[i] @ p[k] - q[i] @ q[k]) ** 2 / n
        for j in range(classes):
            for k in range(classes):
                total = total + (p[:, j] @ p[:, k] - q[:, j] @ q[:, k]) ** 2 / classes
    return total


WIDE = (torch.randn(3, 6), torch.randn(3, 6))
TRIALS = (
    loss_trial(mlld, reference=slow),
    loss_trial(
        functools.partial(mlld, temperatures=(1.0, 4.0)),
        WIDE,
        reference=functools.partial(slow, temperatures=(1.0, 4.0)),
        name="mlld of many classes",
        examples=8,
    ),
    loss_trial(mlld, (*WIDE, torch.tensor([0.5, 1.5, 2.0])), reference=slow, name="mlld masked", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def case(rows: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return student * 2, teacher * 2


def authors(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    batch, classes = student.shape
    instance = F.kl_div(p.log(), q, reduction="batchmean") * temperature**2
    over_classes = (q.T @ q - p.T @ p).square().sum() / classes
    over_batch = (q @ q.T - p @ p.T).square().sum() / batch
    return instance + over_classes + over_batch


@pytest.mark.parametrize(("rows", "classes"), [(6, 5), (5, 6), (2, 30), (30, 2), (1, 1)])
def test_the_authors_formulas_agree(rows: int, classes: int) -> None:
    student, teacher = case(rows, classes)
    got = grad_and_value(mlld)(student, teacher)
    expected = grad_and_value(lambda s: sum(authors(s, teacher, t) for t in (2.0, 3.0, 4.0, 5.0, 6.0)))(student)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_mask_chooses_rows() -> None:
    student, teacher = case()
    half = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    # Only the class level sees a row of weight 0.
    none = mlld(student, teacher, torch.zeros(6, dtype=torch.float64))
    chosen = (mlld(student, teacher, half) - none) + (mlld(student, teacher, 1 - half) - none) + none
    torch.testing.assert_close(chosen, mlld(student, teacher), rtol=1e-12, atol=0)
    torch.testing.assert_close(mlld(student, teacher, half > 0), mlld(student, teacher, half))


def test_a_single_row_of_one_temperature() -> None:
    student, teacher = case(1)
    p, q = student.softmax(1), teacher.softmax(1)
    relations = (p @ p.T - q @ q.T).square().sum() + (p.T @ p - q.T @ q).square().sum() / 5
    torch.testing.assert_close(
        mlld(student, teacher, temperatures=[1.0]), kd(student, teacher, temperature=1.0) + relations
    )


def test_close_predictions_do_not_cancel() -> None:
    student, _ = (x.float() for x in case(4, 40))
    near = student + 1e-3 * torch.randn(4, 40, generator=torch.Generator().manual_seed(1))
    none = torch.zeros(4)  # leaves the classes' level
    exact = mlld(student.double(), near.double(), none).item()
    assert mlld(student, near, none).item() == pytest.approx(exact, rel=1e-3)
    assert grad(mlld)(student, student).abs().max() < 1e-6


def test_temperatures_are_numbers_that_may_be_tensors() -> None:
    student, teacher = case()
    temperatures = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    got = vmap(lambda t: mlld(student, teacher, temperatures=t))(temperatures)
    torch.testing.assert_close(
        got, torch.stack([mlld(student, teacher, temperatures=t) for t in temperatures.tolist()])
    )


def test_errors() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(TransferError, match=r"mlld: wanted logits \(n, classes\)"):
        mlld(torch.zeros(4, 3, 2), torch.zeros(4, 3, 2))
    with pytest.raises(TransferError, match=r"mlld: wanted a weight for each row"):
        mlld(x, x, torch.ones(3))
    with pytest.raises(TransferError, match=r"mlld: wanted at least one temperature"):
        mlld(x, x, temperatures=())
