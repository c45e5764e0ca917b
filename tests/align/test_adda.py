"""Losses with inverted and with even labels, against loops, torch and pytorch-adapt."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.games import normal
from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align import adda, domain_adversarial, domain_confusion
from ttransfer.testing import loss_trial, parametrize_with_checks


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + (-z).exp())


def slow_adda(target_logits: Tensor) -> Tensor:
    return -sum((sigmoid(z).log() for z in target_logits.flatten()), target_logits.new_zeros(())) / len(target_logits)


def slow_confusion(source: Tensor, target: Tensor) -> Tensor:
    total = source.new_zeros(())
    for domain in (source, target):
        for z in domain.flatten():
            total = total - (sigmoid(z).log() + (1 - sigmoid(z)).log()) / 2 / len(domain) / 2
    return total


EVEN = torch.zeros(3, 1)
PAIR = {"source_logits": torch.randn(4, 1), "target_logits": torch.randn(5, 1)}
TRIALS = (
    loss_trial(
        adda,
        {"target_logits": torch.randn(4, 1)},
        reference=slow_adda,
        limits={"even": lambda fn: (fn(EVEN), math.log(2))},
        examples=4,
    ),
    loss_trial(
        domain_confusion,
        PAIR,
        reference=slow_confusion,
        limits={"even": lambda fn: (fn(EVEN, EVEN), math.log(2))},
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("shape", [(5,), (3, 4, 1), (2, 1, 3, 3)])
def test_beside_torch(shape: tuple[int, ...]) -> None:
    z, y = normal(0, *shape), normal(1, *shape)
    same(adda, lambda z: F.binary_cross_entropy_with_logits(z, torch.ones_like(z)), z)
    half = torch.full(shape, 0.5, dtype=torch.float64)
    bce = F.binary_cross_entropy_with_logits
    same(lambda z: domain_confusion(z, y), lambda z: (bce(z, half) + bce(y, half)) / 2, z)


def test_beside_pytorch_adapt() -> None:
    z, y = normal(0, 5), normal(1, 3)
    other = theirs("pytorch_adapt.layers", "UniformDistributionLoss")

    def both(z: Tensor) -> Tensor:
        return (other(torch.stack([z, 0 * z], 1)) + other(torch.stack([y, 0 * y], 1))) / 2

    same(lambda z: domain_confusion(z, y), both, z)


def test_a_sure_critic_still_teaches() -> None:
    sure = torch.tensor([[-30.0]])
    inverted = torch.func.grad(adda)(sure)
    assert inverted.item() == pytest.approx(-1)
    assert torch.func.grad(lambda t: -domain_adversarial(sure, t))(sure).abs().item() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confident_logits(dtype: torch.dtype) -> None:
    z = torch.tensor([[1e3], [-1e3]], dtype=dtype)
    assert adda(z).item() == pytest.approx(500, rel=1e-2)
    assert domain_confusion(z, z).item() == pytest.approx(500, rel=1e-2)
    assert torch.func.grad(adda)(z).isfinite().all()
    assert torch.func.grad(domain_confusion)(z, z).isfinite().all()


def test_more_than_one_logit_is_refused() -> None:
    with pytest.raises(TransferError, match=r"adda: wanted one logit per item.*target \(4, 2\) float32"):
        adda(torch.zeros(4, 2))
    with pytest.raises(TransferError, match=r"domain_confusion: wanted one logit per item.*source \(4, 2\) float32"):
        domain_confusion(torch.zeros(4, 2), torch.zeros(4, 1))
