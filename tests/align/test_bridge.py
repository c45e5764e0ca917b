"""`bridge` against a loop and pytorch-adapt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.games import normal
from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align import bridge
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(source: Tensor, target: Tensor) -> Tensor:
    total = source.new_zeros(())
    for domain in (source, target):
        for x in domain.flatten():
            total = total + (x if x > 0 else -x) / domain.numel() / 2
    return total


TRIALS = (loss_trial(bridge, (torch.randn(4, 3), torch.randn(5, 3)), reference=slow, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_pytorch_adapt() -> None:
    source, target = normal(0, 5, 3), normal(1, 4, 3)
    other = theirs("pytorch_adapt.layers", "AbsLoss")
    same(lambda s: bridge(s, target), lambda s: (other(s) + other(target)) / 2, source)


def test_integers_are_refused() -> None:
    with pytest.raises(TransferError, match=r"bridge: wanted floating tensors.*source \(2, 3\) int64"):
        bridge(torch.zeros(2, 3).long(), torch.zeros(2, 3))
