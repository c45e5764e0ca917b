"""`schedules.ramp` against the formula of the paper."""

from __future__ import annotations

import math

import pytest
import torch

from ttransfer import schedules


@pytest.mark.parametrize(("high", "alpha"), [(1.0, 10.0), (0.3, 5.0)])
def test_equals_the_formula(high: float, alpha: float) -> None:
    weight = schedules.ramp(50, high=high, alpha=alpha)
    for t in range(70):
        p = min(t / 50, 1.0)
        want = high * (2.0 / (1.0 + math.exp(-alpha * p)) - 1.0)
        assert weight(t).item() == pytest.approx(want, rel=1e-12, abs=1e-15)


def test_a_steep_ramp_does_not_overflow() -> None:
    assert schedules.ramp(10, alpha=-1e4)(10).item() == -1.0
    assert torch.isfinite(schedules.ramp(10, alpha=1e4)(10))
