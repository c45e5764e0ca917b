"""`dkd` against the paper's formula in slow loops, and against what holds between it and `kd`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value

from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._dkd import dkd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t, y in zip(student / temperature, teacher.detach() / temperature, labels.tolist(), strict=True):
        p, q = t.softmax(0), s.softmax(0)
        others = [j for j in range(len(s)) if j != y]
        p_rest, q_rest = sum((p[j] for j in others), 0 * p[0]), sum((q[j] for j in others), 0 * q[0])
        tckd = p[y] * (p[y] / q[y]).log() + p_rest * (p_rest / q_rest).log()
        nckd = sum(((p[j] / p_rest) * ((p[j] / p_rest) / (q[j] / q_rest)).log() for j in others), 0 * p[0])
        total = total + temperature**2 * (alpha * tckd + beta * nckd)
    return total / len(student)


MAPS = (
    torch.randn(3, 4, 2, 2),
    torch.randn(3, 4, 2, 2),
    torch.randint(0, 4, (3, 2, 2), generator=torch.Generator().manual_seed(0)),
)
TRIALS = (
    loss_trial(dkd, reference=slow),
    loss_trial(
        functools.partial(dkd, alpha=0.5, beta=2.0, temperature=1.0),
        reference=functools.partial(slow, alpha=0.5, beta=2.0, temperature=1.0),
        name="dkd at 1",
        examples=8,
    ),
    loss_trial(dkd, MAPS, name="dkd of maps", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def case(rows: int = 6, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, rows, classes, dtype=torch.float64, generator=generator) * scale
    return student, teacher, torch.randint(0, classes, (rows,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_tckd_and_nckd_by_the_teachers_doubt(temperature: float) -> None:
    for s, t, y in zip(*case(), strict=True):
        row = (s[None], t[None], y[None])
        doubt = 1 - (t / temperature).softmax(0)[y].item()
        got = grad_and_value(lambda s, t, y, d=doubt: dkd(s, t, y, alpha=1.0, beta=d, temperature=temperature))(*row)
        expected = grad_and_value(lambda s, t: kd(s, t, temperature=temperature))(*row[:2])
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_of_two_classes_it_is_kd() -> None:
    student, teacher, labels = case(classes=2)
    torch.testing.assert_close(dkd(student, teacher, labels), kd(student, teacher), rtol=1e-10, atol=0)
    assert dkd(student, teacher, labels, alpha=0.0).item() == 0


def authors(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Probabilities, then their logarithms; the label's class is left out by 1000 off its logit."""
    there = F.one_hot(labels, student.shape[1]).bool()
    p, q = (x.softmax(1) for x in (teacher / temperature, student / temperature))
    two = [torch.stack([(x * there).sum(1), (x * ~there).sum(1)], 1) for x in (p, q)]
    log_rest = [(x / temperature - 1000 * there).log_softmax(1) for x in (teacher, student)]
    tckd = F.kl_div(two[1].log(), two[0], reduction="batchmean")
    nckd = F.kl_div(log_rest[1], log_rest[0].exp(), reduction="batchmean")
    return temperature**2 * tckd, temperature**2 * nckd


def test_the_authors_formula_agrees_where_it_is_finite() -> None:
    tckd, nckd = authors(*case(), temperature=4.0)
    torch.testing.assert_close(dkd(*case()), tckd + 8 * nckd, rtol=1e-9, atol=0)


def test_sure_logits_are_finite_here_and_not_there() -> None:
    student, teacher, labels = (x.float() if x.is_floating_point() else x for x in case(scale=200.0))
    fn = functools.partial(dkd, temperature=1.0)
    slope, value = grad_and_value(fn)(student, teacher, labels)
    assert value.isfinite()
    assert slope.isfinite().all()
    assert not authors(student, teacher, labels)[0].isfinite()
    assert not grad(lambda s: sum(authors(s, teacher, labels)))(student).isfinite().all()


def test_a_label_1000_above_is_still_left_out() -> None:
    student, teacher, labels = torch.zeros(1, 3), torch.tensor([[1e3, 0.0, 0.0]]), torch.tensor([0])
    assert dkd(student, teacher, labels, alpha=0.0, temperature=1.0).item() == pytest.approx(0, abs=1e-6)
    assert authors(student, teacher, labels)[1].item() > 300  # a third of the teacher's rest is the label's class


def test_errors() -> None:
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TransferError, match=r"dkd: wanted at least two classes, got student \(4, 1\)"):
        dkd(x[:, :1], x[:, :1], y)
    with pytest.raises(TransferError, match=r"dkd: wanted one label for each row"):
        dkd(x, x, y[:3])
    with pytest.raises(TransferError, match=r"dkd: wanted tensors of one shape"):
        dkd(x, x[:3], y)
