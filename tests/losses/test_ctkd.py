"""`ctkd` against `kd` at the temperature, and its reversed gradient."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._ctkd import ctkd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, theta: Tensor) -> Tensor:
    thetas = theta.tolist() if theta.ndim else [theta.item()] * len(student)
    total = torch.zeros((), dtype=student.dtype)
    for s, t, x in zip(student, teacher.detach(), thetas, strict=True):
        temperature = 1 + 20 / (1 + math.exp(-x))
        log_p, log_q = (t / temperature).log_softmax(0), (s / temperature).log_softmax(0)
        for a, b in zip(log_p, log_q, strict=True):
            total = total + temperature**2 * a.exp() * (a - b)
    return total / len(student)


TRIALS = (
    loss_trial(ctkd, (torch.randn(4, 3), torch.randn(4, 3), torch.tensor(1.0)), reference=slow),
    loss_trial(
        ctkd,
        (torch.randn(4, 3), torch.randn(4, 3), torch.tensor([1.0, -1.0, 0.5, 0.0])),
        expected_failed_checks={"gradcheck": "the gradient by theta is reversed"},
        name="ctkd of rows",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def case() -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    return student, teacher


def plain(student: Tensor, teacher: Tensor, theta: Tensor) -> Tensor:
    return kd(student, teacher, temperature=1 + 20 * theta.sigmoid())


@pytest.mark.parametrize("theta", [-2.0, 0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_it_is_kd_with_the_slope_of_theta_reversed(theta: float, scale: float) -> None:
    inputs = (*case(), torch.tensor(theta, dtype=torch.float64))
    fn = functools.partial(ctkd, scale=scale)
    torch.testing.assert_close(fn(*inputs), plain(*inputs), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad(fn)(*inputs), grad(plain)(*inputs), rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(grad(fn, 2)(*inputs), -scale * grad(plain, 2)(*inputs), rtol=1e-9, atol=1e-15)


def test_the_start_of_the_paper() -> None:
    assert 1 + 20 * torch.tensor(1.0).sigmoid().item() == pytest.approx(15.62, abs=5e-3)


def test_rows_have_temperatures_of_their_own() -> None:
    student, teacher = case()
    theta = torch.linspace(-2, 2, 6, dtype=torch.float64)
    rows = [ctkd(s[None], t[None], x) for s, t, x in zip(student, teacher, theta, strict=True)]
    torch.testing.assert_close(ctkd(student, teacher, theta), torch.stack(rows).mean(), rtol=1e-12, atol=0)
    slopes = [grad(ctkd, 2)(s[None], t[None], x) / 6 for s, t, x in zip(student, teacher, theta, strict=True)]
    torch.testing.assert_close(grad(ctkd, 2)(student, teacher, theta), torch.stack(slopes), rtol=1e-9, atol=1e-15)


def test_errors() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(TransferError, match=r"ctkd: wanted a theta of \(\) or one for each row"):
        ctkd(x, x, torch.zeros(1))
    with pytest.raises(TransferError, match=r"ctkd: wanted logits \(n, classes\)"):
        ctkd(torch.zeros(4, 3, 2), torch.zeros(4, 3, 2), torch.tensor(1.0))
