"""`soft_cross_entropy` and `logit_mse` against slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value

from tests.support import peers
from ttransfer._errors import TransferError
from ttransfer.losses import entropy, kd
from ttransfer.losses._soft import logit_mse, soft_cross_entropy
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow_soft(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher.detach(), strict=True):
        p, log_q = (t / temperature).softmax(0), (s / temperature).log_softmax(0)
        for j in range(len(s)):
            total = total - temperature**2 * p[j] * log_q[j]
    return total / len(student)


def slow_mse(student: Tensor, teacher: Tensor) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student.flatten(), teacher.detach().flatten(), strict=True):
        total = total + (s - t) ** 2
    return total / student.numel()


MAPS = (torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2))
TRIALS = (
    loss_trial(
        soft_cross_entropy,
        reference=slow_soft,
        limits={"unsure": lambda fn: (fn(torch.zeros(2, 5), torch.randn(2, 5), temperature=1.0), math.log(5))},
    ),
    loss_trial(soft_cross_entropy, MAPS, name="soft_cross_entropy of maps", examples=8),
    loss_trial(logit_mse, reference=slow_mse),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    return student, teacher


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_kd_and_the_teachers_entropy(temperature: float) -> None:
    student, teacher = pair(5, 7, 2)
    kept = temperature**2 * entropy((teacher / temperature).movedim(1, -1).flatten(0, 1))
    got = grad_and_value(lambda s: soft_cross_entropy(s, teacher, temperature=temperature))(student)
    slope, value = grad_and_value(lambda s: kd(s, teacher, temperature=temperature))(student)
    torch.testing.assert_close(got, (slope, value + kept), rtol=1e-10, atol=1e-12)


def test_torch_agrees() -> None:
    student, teacher = pair(5, 7)
    expected = F.cross_entropy(student, teacher.softmax(1))
    torch.testing.assert_close(soft_cross_entropy(student, teacher, temperature=1.0), expected, rtol=1e-12, atol=0)


def test_zhijian_agrees_but_for_the_teachers_gradient() -> None:
    peer = peers.theirs("zhijian.models.kd.loss.logits", "Logits")
    student, teacher = pair(5, 7)
    ours, theirs = (grad_and_value(fn)(student, teacher) for fn in (logit_mse, peer))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    assert grad(peer, 1)(student, teacher).abs().max() > 0.1


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"soft_cross_entropy: wanted tensors of one shape"):
        soft_cross_entropy(torch.zeros(4, 10), torch.zeros(4, 9))
    with pytest.raises(TransferError, match=r"logit_mse: wanted floating logits, not labels"):
        logit_mse(torch.zeros(4, 10), torch.zeros(4, 10, dtype=torch.int64))
