"""`mcd` against a loop and pytorch-adapt."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.games import normal
from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align import mcd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(logits: Tensor, other_logits: Tensor) -> Tensor:
    total = logits.new_zeros(())
    for z, y in zip(logits, other_logits, strict=True):
        for c in range(len(z)):
            total = total + (z[c].exp() / z.exp().sum() - y[c].exp() / y.exp().sum()).abs()
    return total / logits.numel()


ONE, EVEN = torch.tensor([[100.0, 0.0]]), torch.zeros(1, 2)
TRIALS = (loss_trial(mcd, reference=slow, limits={"one and even": lambda fn: (fn(ONE, EVEN), 0.5)}, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3, 3)])
def test_beside_pytorch_adapt(shape: tuple[int, ...]) -> None:
    same(mcd, theirs("pytorch_adapt.layers", "MCDLoss"), normal(0, *shape) * 3, normal(1, *shape))


def test_pytorch_adapts_for_several_classifiers_raises() -> None:
    general = theirs("pytorch_adapt.layers.mcd_loss", "GeneralMCDLoss")
    with pytest.raises(TypeError, match="'module' object is not callable"):
        general(normal(0, 2, 3), normal(1, 2, 3))


def test_equal_classifiers() -> None:
    z = normal(0, 4, 3)
    assert mcd(z, z + 1).item() == pytest.approx(0, abs=1e-15)
    assert mcd(z, -z).item() == mcd(-z, z).item()
    assert torch.func.grad(mcd)(z, z).count_nonzero() == 0
    sure = torch.tensor([[1e3, -1e3]], dtype=torch.bfloat16)
    assert math.isclose(mcd(sure, -sure).item(), 1)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(TransferError, match=r"mcd: wanted logits of one shape, got logits \(2, 3\) float32 and other_"):
        mcd(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(TransferError, match="mcd: wanted logits"):
        mcd(torch.zeros(3), torch.zeros(3))
