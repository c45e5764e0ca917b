"""`mutual` against `kd` both ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from tests.support import peers
from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._mutual import mutual
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(first: Tensor, second: Tensor) -> Tensor:
    total = torch.zeros((), dtype=first.dtype)
    for a, b in zip(first, second, strict=True):
        p, q = a.log_softmax(0), b.log_softmax(0)
        for j in range(len(p)):
            total = total + q[j].detach().exp() * (q[j].detach() - p[j]) + p[j].detach().exp() * (p[j].detach() - q[j])
    return total / len(first)


BROKEN = {"gradcheck": "each student is held constant where it teaches, as each has an optimizer of its own"}
MAPS = (torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2))
TRIALS = (
    loss_trial(mutual, (torch.randn(4, 3), torch.randn(4, 3)), reference=slow, expected_failed_checks=BROKEN),
    loss_trial(mutual, MAPS, expected_failed_checks=BROKEN, name="mutual of maps", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def case() -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    return first, second


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_each_learns_as_from_a_teacher(temperature: float) -> None:
    a, b = case()

    def one_way(s: Tensor, t: Tensor) -> Tensor:
        return kd(s, t, temperature=temperature)

    def both(a: Tensor, b: Tensor) -> Tensor:
        return mutual(a, b, temperature=temperature)

    torch.testing.assert_close(both(a, b), one_way(a, b) + one_way(b, a), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad(both, 0)(a, b), grad(one_way)(a, b), rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(grad(both, 1)(a, b), grad(one_way)(b, a), rtol=1e-11, atol=1e-14)


def test_zhijians_is_one_way_and_pulls_both() -> None:
    peer = peers.theirs("zhijian.models.kd.loss.dml", "DML")
    a, b = case()
    torch.testing.assert_close(mutual(a, b), peer(a, b) + peer(b, a), rtol=1e-10, atol=0)
    assert grad(peer, 1)(a, b).abs().max() > 1e-3


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"mutual: wanted tensors of one shape"):
        mutual(torch.zeros(4, 10), torch.zeros(4, 9))
