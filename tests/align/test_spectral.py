"""`bsp` and `bnm` by eigenvalues of Gram matrices, and pytorch-adapt."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align._spectral import bnm, bsp
from ttransfer.testing import loss_trial, parametrize_with_checks


def values(x: Tensor) -> Tensor:
    """Squares of the singular values, the largest first."""
    gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
    return torch.linalg.eigvalsh(gram).flip(0)


def slow_bsp(features: Tensor) -> Tensor:
    return values(features)[0]


def slow_bnm(logits: Tensor) -> Tensor:
    return -values(torch.stack([z.softmax(0) for z in logits])).clamp_min(1e-24).sqrt().sum() / len(logits)


TRIALS = (
    loss_trial(bsp, reference=slow_bsp, examples=4),
    loss_trial(
        bnm,
        limits={"one class": lambda fn: (fn(torch.tensor([[900.0, 0.0]] * 4)), -0.5)},
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_beside_others(shape: tuple[int, int]) -> None:
    x = torch.randn(shape).double()
    same(bsp, theirs("pytorch_adapt.layers", "BatchSpectralLoss"), x)
    same(functools.partial(bsp, k=2), theirs("pytorch_adapt.layers", "BatchSpectralLoss", k=2), x)
    same(bnm, theirs("pytorch_adapt.layers", "BNMLoss"), x)
    same(functools.partial(bsp, k=99), lambda x: x.square().sum(), x)
    same(bnm, slow_bnm, x)


def test_repeated_and_vanishing_values() -> None:
    x = torch.eye(3)
    assert bsp(x) == 1
    for slope in (grad(bsp), grad(bnm)):
        assert slope(x).isfinite().all()
        assert slope(torch.zeros(4, 3)).isfinite().all()
        assert slope(1000 * x).isfinite().all()


def test_what_is_refused() -> None:
    with pytest.raises(TransferError, match="bsp: wanted a whole number of at least 1 for k, got 0"):
        bsp(torch.zeros(2, 2), k=0)
    with pytest.raises(TransferError, match=r"bnm: wanted logits \(n, classes\)"):
        bnm(torch.zeros(2, 3, 4))
