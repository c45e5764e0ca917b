"""`mcc` entry by entry of the confusion matrix, and other packages."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align._mcc import mcc
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(logits: Tensor, temperature: float = 2.5) -> Tensor:
    p = [(z / temperature).softmax(0) for z in logits]
    weights = [1 + math.exp(sum(x * math.log(x) for x in row.tolist() if x > 0)) for row in p]
    classes = range(logits.shape[1])

    def confusion(c: int, d: int) -> Tensor:
        return torch.stack([w * row[c] * row[d] for w, row in zip(weights, p, strict=True)]).sum()

    found = []
    for c in classes:
        row = [confusion(c, d) for d in classes]
        found += [row[d] / torch.stack(row).sum() for d in classes if d != c]
    return torch.stack(found).sum() / logits.shape[1]


HELD = {"gradcheck": "the weights are held constant"}
TRIALS = (loss_trial(mcc, reference=slow, expected_failed_checks=HELD, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_beside_others(temperature: float) -> None:
    z = torch.randn(7, 4).double()
    ours = functools.partial(mcc, temperature=temperature)
    same(ours, theirs("pytorch_adapt.layers", "MCCLoss", T=temperature), z)
    skada = theirs("skada.deep.losses", "mcc_loss", z, T=temperature).item()
    assert ours(z).item() == pytest.approx(skada, rel=1e-6)


def test_skada_differentiates_its_weights() -> None:
    z = torch.randn(7, 4).double().requires_grad_()
    slope = torch.autograd.grad(theirs("skada.deep.losses", "mcc_loss", z, T=2.5), z)[0]
    assert ((slope - grad(mcc)(z.detach())).norm() / slope.norm()).item() > 1e-3


def test_confident_logits() -> None:
    z = torch.tensor([[400.0, 0.0, 0.0], [400.0, 1.0, 0.0]])
    other = theirs("pytorch_adapt.layers", "MCCLoss", T=2.5)
    assert math.isnan(other(z).item())
    assert mcc(z).item() == pytest.approx(2 / 3, rel=1e-5)  # two of three classes are wholly confused with the first
    assert grad(mcc)(z).isfinite().all()
    widths = torch.tensor([1.0, 2.5])
    assert torch.func.vmap(lambda t: mcc(z, temperature=t))(widths).isfinite().all()


def test_maps_are_refused() -> None:
    with pytest.raises(TransferError, match=r"mcc: wanted logits \(n, classes\)"):
        mcc(torch.zeros(2, 3, 4))
