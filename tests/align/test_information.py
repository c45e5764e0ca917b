"""Entropies of predictions and of their mean, row by row and in SciPy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.func import grad

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align._information import diversity, infomax
from ttransfer.losses import entropy
from ttransfer.testing import loss_trial, parametrize_with_checks


def surprise(p: Tensor) -> Tensor:
    return torch.stack([-x * x.log() for x in p]).sum()


def slow_entropy(logits: Tensor) -> Tensor:
    return torch.stack([surprise(z.softmax(0)) for z in logits]).mean()


def slow_diversity(logits: Tensor) -> Tensor:
    return -surprise(torch.stack([z.softmax(0) for z in logits]).mean(0))


def slow_infomax(logits: Tensor) -> Tensor:
    return slow_entropy(logits) + slow_diversity(logits)


TRIALS = (
    loss_trial(diversity, reference=slow_diversity, examples=4),
    loss_trial(infomax, reference=slow_infomax, examples=4),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_others() -> None:
    z = torch.randn(6, 4).double()
    one, all_of_them = theirs("pytorch_adapt.layers", "EntropyLoss"), theirs("pytorch_adapt.layers", "DiversityLoss")
    same(entropy, one, z)
    same(diversity, all_of_them, z, relative=1e-6)  # it adds 1e-7 inside the logarithm
    p = z.softmax(1).numpy()
    assert entropy(z).item() == pytest.approx(scipy.stats.entropy(p, axis=1).mean(), rel=1e-12)
    assert diversity(z).item() == pytest.approx(-scipy.stats.entropy(p.mean(0)), rel=1e-12)


@pytest.mark.parametrize("loss", [diversity, infomax])
def test_maps_are_many_rows(loss: Callable[[Tensor], Tensor]) -> None:
    z = torch.randn(2, 4, 3, 2).double()
    assert torch.allclose(loss(z), loss(z.movedim(1, -1).reshape(-1, 4)), rtol=1e-12)
    with pytest.raises(TransferError, match=rf"{loss.__name__}: wanted logits"):
        loss(z[:, :1])


def test_a_class_that_nobody_is_gets_a_gradient() -> None:
    z = 200 * torch.eye(3)[[0, 0, 1]]
    assert grad(diversity)(z / 10)[:, 2].count_nonzero() == 3
    z[:, 2] = -1000
    assert grad(infomax)(z).isfinite().all()
