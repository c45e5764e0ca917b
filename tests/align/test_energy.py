"""`energy_distance` pair by pair, in SciPy and in geomloss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import scipy.stats
import torch
from torch import Tensor

from tests.support.peers import same, theirs
from ttransfer.align._energy import energy_distance
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(source: Tensor, target: Tensor) -> Tensor:
    def mean(xs: Tensor, ys: Tensor) -> Tensor:
        return torch.stack([(x - y).norm() if (x != y).any() else 0 * x.sum() for x in xs for y in ys]).mean()

    return 2 * mean(source, target) - mean(source, source) - mean(target, target)


TRIALS = (loss_trial(energy_distance, reference=slow, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_geomloss_has_half_with_rows_apart_from_themselves() -> None:
    other = theirs("geomloss", "SamplesLoss", "energy")
    apart = 1e-4 * (1 / 5 + 1 / 8)
    same(energy_distance, lambda s, t: 2 * other(s, t) + apart, torch.randn(5, 3), torch.randn(8, 3) + 1)


def test_scipy_has_the_root() -> None:
    s, t = torch.randn(5, 1).double(), torch.randn(8, 1).double() + 1
    wanted = scipy.stats.energy_distance(s[:, 0].numpy(), t[:, 0].numpy()) ** 2
    assert energy_distance(s, t).item() == pytest.approx(wanted, rel=1e-10)


def test_float32_far_from_the_origin() -> None:
    s, t = torch.randn(6, 8).double(), torch.randn(7, 8).double() + 0.5
    assert energy_distance(s.float() + 300, t.float() + 300).item() == pytest.approx(
        energy_distance(s, t).item(), abs=1e-3
    )
