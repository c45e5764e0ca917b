"""`srd` against a slow loop and torchdistill."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from tests.support import peers
from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._srd import srd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, exponent: float = 4.0) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student.flatten(), teacher.detach().flatten(), strict=True):
        total = total + (s - t).abs() ** exponent
    return total.log() if total.item() > 1e-12 else 0 * total + math.log(1e-12)


FEATURES = (torch.randn(4, 3), torch.randn(4, 3))
TRIALS = (
    loss_trial(
        srd,
        FEATURES,
        reference=slow,
        limits={"of ones": lambda fn: (fn(torch.ones(2, 3), torch.zeros(2, 3)), math.log(6))},
    ),
    loss_trial(
        functools.partial(srd, exponent=1.0),
        (torch.randn(4, 3, 2), torch.randn(4, 3, 2)),
        reference=functools.partial(slow, exponent=1.0),
        name="srd of maps at 1",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def torchdistill(exponent: float) -> Callable[..., Tensor]:
    paths = {
        f"{side}_{end}_module_{what}": end
        for side in ("student", "teacher")
        for end in ("feature", "linear")
        for what in ("path", "io")
    }
    peer = peers.theirs("torchdistill.losses.mid_level", "SRDLoss", **paths, exponent=exponent)

    def call(student: Tensor, teacher: Tensor, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        def io(x: Tensor, z: Tensor) -> dict[str, dict[str, Tensor]]:
            return {"feature": {"feature": x}, "linear": {"linear": z}}

        return peer(io(student, student_logits), io(teacher, teacher_logits))

    return call


@pytest.mark.parametrize("exponent", [1.0, 4.0])
def test_torchdistills_is_twice_this_and_kd(exponent: float) -> None:
    generator = torch.Generator().manual_seed(0)
    f, g = torch.randn(2, 6, 8, dtype=torch.float64, generator=generator)
    s, t = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator)
    got = grad_and_value(lambda f: 2 * srd(f, g, exponent=exponent) + kd(s, t, temperature=1.0))(f)
    expected = grad_and_value(lambda f: torchdistill(exponent)(f, g, s, t))(f)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_equal_features_are_finite_here_and_not_there() -> None:
    f, s = torch.randn(6, 8), torch.randn(6, 5)
    slope, value = grad_and_value(srd)(f, f)
    assert value.item() == pytest.approx(math.log(1e-12))
    assert slope.count_nonzero() == 0
    slope, value = grad_and_value(lambda x: torchdistill(1.0)(x, f, s, s))(f)
    assert value.item() == -math.inf
    assert slope.isnan().any()


def test_the_gradient_is_free_of_the_scale() -> None:
    f, g = torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(10 * grad(srd)(10 * f, 10 * g), grad(srd)(f, g), rtol=1e-11, atol=1e-15)


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"srd: wanted tensors of one shape"):
        srd(torch.zeros(4, 10), torch.zeros(4, 9))
    with pytest.raises(TransferError, match=r"srd: wanted at least 2 axes"):
        srd(torch.zeros(4), torch.zeros(4))
