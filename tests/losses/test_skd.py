"""`skd_instance` and `skd_direction` against their formulas in slow loops."""

from __future__ import annotations

import functools
import statistics
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._skd import skd_direction, skd_instance
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow_instance(student: Tensor, teacher: Tensor, temperature: float = 4.0, variant: str = "paper") -> Tensor:
    sure = [max(row.softmax(0).tolist()) for row in teacher]
    total = torch.zeros((), dtype=torch.float64)
    for s, t, how in zip(student, teacher.detach(), sure, strict=True):
        log_p, log_q = (t / temperature).log_softmax(0), (s / temperature).log_softmax(0)
        row = sum(a.exp() * (a - b) for a, b in zip(log_p, log_q, strict=True))
        if variant == "paper":
            total = total + row
        elif how <= statistics.median(sure):
            total = total + temperature**2 * row
    return total / len(student)


def slow_direction(student: Tensor, teacher: Tensor, tikhonov: float = 0.1, variant: str = "paper") -> Tensor:
    teacher = teacher.detach()
    n, classes = student.shape
    s, t = ([row / row.norm() for row in x] for x in (student, teacher))
    gap = torch.stack([torch.stack([(s[i] * s[j]).sum() - (t[i] * t[j]).sum() for j in range(n)]) for i in range(n)])
    gap = gap / classes if variant == "code" else gap
    mean = torch.stack(list(gap)).mean(0)
    spread = sum(torch.outer(row - mean, row - mean) for row in gap) / (n - 1)
    inverse = (spread + tikhonov * torch.eye(n, dtype=gap.dtype)).inverse()
    value = torch.stack([(row @ inverse @ row).sqrt() for row in gap]).mean()
    if variant == "paper":
        return value
    held = [sum(teacher.softmax(1)[:, c].tolist()) for c in range(classes)]
    return value * sum(x <= statistics.median(held) for x in held) / classes


PAIR = (torch.randn(4, 5), torch.randn(4, 5))
TRIALS = (
    loss_trial(skd_instance, PAIR, tags=Tags(coupled=False), reference=slow_instance, examples=8),
    loss_trial(
        functools.partial(skd_instance, variant="code"),
        PAIR,
        reference=functools.partial(slow_instance, variant="code"),
        name="skd_instance of the code",
        examples=8,
    ),
    loss_trial(
        skd_direction,
        PAIR,
        tags=Tags(symmetric=True, rotation_invariant=True),
        reference=slow_direction,
        examples=8,
    ),
    loss_trial(
        functools.partial(skd_direction, variant="code"),
        PAIR,
        reference=functools.partial(slow_direction, variant="code"),
        name="skd_direction of the code",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("rows", [6, 7])
def test_beside_torchdistill(rows: int, variant: str) -> None:
    student, teacher = torch.randn(rows, 10) * 3, torch.randn(rows, 10) * 3
    # Its identity is float32: of a number that this holds exactly.
    for name, ours, keywords in (
        ("SKDInstanceLoss", skd_instance, {"temperature": 3.0}),
        ("SKDDirectionLoss", skd_direction, {"tikhonov": 0.125}),
    ):
        path = "torchdistill.losses.mid_level"
        other = theirs(path, name, "x", "output", "x", "output", mode=variant, **keywords)

        def tap(s: Tensor, t: Tensor, other: Callable[..., Tensor] = other) -> Tensor:
            return other(tapped(x=s), tapped(x=t))

        same(functools.partial(ours, variant=variant, **keywords), tap, student, teacher)


def test_torchdistill_at_equality_and_for_one_row() -> None:
    other = theirs("torchdistill.losses.mid_level", "SKDDirectionLoss", "x", "output", "x", "output")
    student = torch.randn(5, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(other(tapped(x=student), tapped(x=student.detach())), student)
    assert slope.isnan().any()
    (slope,) = torch.autograd.grad(skd_direction(student, student), student)
    assert slope.count_nonzero() == 0
    one = torch.randn(1, 4)
    assert skd_direction(student[:1], one).item() == pytest.approx(0, abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="not positive-definite"):
            other(tapped(x=student[:1]), tapped(x=one))


def test_torchdistills_median_takes_no_bfloat16() -> None:
    student, teacher = torch.randn(2, 5, 4).bfloat16()
    other = theirs("torchdistill.losses.mid_level", "SKDInstanceLoss", "x", "output", "x", "output", mode="code")
    with pytest.raises(RuntimeError, match="quantile"):
        other(tapped(x=student), tapped(x=teacher))
    assert skd_instance(student, teacher, variant="code").dtype == torch.bfloat16


def test_what_is_refused() -> None:
    x = torch.zeros(4, 3)
    for loss in (skd_instance, skd_direction):
        with pytest.raises(TransferError, match=f"{loss.__name__}: wanted variant 'paper' or 'code', got 'sum'"):
            loss(x, x, variant="sum")  # type: ignore[arg-type]
        with pytest.raises(TransferError, match=rf"{loss.__name__}: wanted logits \(n, classes\)"):
            loss(x[:, :, None], x[:, :, None])
