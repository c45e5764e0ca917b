"""`pad` against the formula in slow loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._pad import pad
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, log_variance: Tensor, eps: float = 1e-6) -> Tensor:
    s, t, v = (x.flatten(1) for x in (student, teacher.detach(), log_variance))
    numbers = [
        (s[i, j] - t[i, j]) ** 2 / (v[i, j % v.shape[1]].exp() + eps) + v[i, j % v.shape[1]]
        for i in range(len(s))
        for j in range(s.shape[1])
    ]
    return torch.stack(numbers).mean()


PAIR = (torch.randn(4, 3), torch.randn(4, 3))
TRIALS = (
    loss_trial(pad, (*PAIR, torch.randn(4, 3)), reference=slow, examples=8),
    loss_trial(pad, (*PAIR, torch.randn(4, 1)), reference=slow, name="pad of one variance", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_torchdistill() -> None:
    other = theirs("torchdistill.losses.mid_level", "PADL2Loss", "s", "t", module_path="v")
    student, teacher, log_variance = torch.randn(5, 6), torch.randn(5, 6), torch.randn(5, 6)
    same(pad, lambda s, t, v: other(tapped(s=s, v=v), tapped(t=t)), student, teacher, log_variance)

    def turned(v: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return pad(s, t, v)

    same(turned, lambda v, s, t: other(tapped(s=s, v=v), tapped(t=t)), log_variance, student, teacher)


@pytest.mark.parametrize("size", [1e3, 100.0, -1e3])
def test_variances_of_any_size_are_finite(size: float) -> None:
    student, teacher = torch.ones(1, 2), torch.zeros(1, 2)
    slope, value = torch.func.grad_and_value(pad, 2)(student, teacher, torch.full((1, 2), size))
    assert value.isfinite()
    assert slope.tolist() == [[0.5, 0.5]]
    if size > 0:
        other = theirs("torchdistill.losses.mid_level", "PADL2Loss", "s", "t", module_path="v")
        log_variance = torch.full((1, 2), size, requires_grad=True)
        other(tapped(s=student, v=log_variance), tapped(t=teacher)).backward()
        assert log_variance.grad is not None
        assert log_variance.grad.isnan().all()


def test_best_variance_is_the_squared_error() -> None:
    error = torch.tensor([[0.3, 2.0]])
    slope = torch.func.grad(lambda v: pad(error, torch.zeros(1, 2), v, eps=0.0))(error.square().log())
    assert slope.abs().max() < 1e-6


def test_what_is_refused() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(TransferError, match=r"pad: wanted log-variances \(4, 3\) or \(4, 1\)"):
        pad(x, x, torch.zeros(4, 2))
    with pytest.raises(TransferError, match="pad: wanted tensors of one shape"):
        pad(x, x[:, :2], x)
