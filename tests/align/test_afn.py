"""`afn` and `afn_hard` row by row; of the former the gradient is what can be wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align._afn import afn, afn_hard
from ttransfer.testing import loss_trial, parametrize_with_checks


def length(x: Tensor) -> Tensor:
    return x.norm() if x.any() else 0 * x.sum()


def slow(features: Tensor) -> Tensor:
    return torch.stack([(length(x) - (length(x).item() + 1)) ** 2 for x in features]).mean()


def slow_hard(features: Tensor) -> Tensor:
    return (torch.stack([length(x) for x in features]).sum() / len(features) - 25) ** 2


HELD = {"gradcheck": "the lengths that are to grow are held constant"}
TRIALS = (
    loss_trial(afn, reference=slow, expected_failed_checks=HELD, examples=4),
    loss_trial(afn_hard, reference=slow_hard, examples=4),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("step", [1.0, 0.3])
def test_pytorch_adapt(step: float) -> None:
    x = torch.randn(5, 3).double()
    same(functools.partial(afn, step=step), theirs("pytorch_adapt.layers", "AdaptiveFeatureNorm", step_size=step), x)
    wanted = -2 * step * x / x.norm(dim=1, keepdim=True) / 5
    assert torch.allclose(grad(lambda x: afn(x, step=step))(x), wanted, rtol=1e-12)


def test_both_domains_as_the_paper_has_it() -> None:
    s, t = torch.randn(5, 3).double(), torch.randn(4, 3).double()
    together = grad(lambda s: afn(torch.cat([s, t])))(s)
    assert torch.allclose(together, grad(afn)(s) * 5 / 9, rtol=1e-12)


def test_zeros_and_numbers() -> None:
    assert grad(afn)(torch.zeros(2, 3)).count_nonzero() == 0
    assert grad(afn_hard)(torch.zeros(2, 3)).count_nonzero() == 0
    x = torch.randn(3, 2)
    assert vmap(lambda r: afn_hard(x, radius=r))(torch.tensor([0.0, 1.0])).shape == (2,)
    with pytest.raises(TransferError, match=r"afn: wanted floating features \(n, d\)"):
        afn(torch.zeros(2, 3, 4, 4))
