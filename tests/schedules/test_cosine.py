"""`schedules.cosine` against `CosineAnnealingLR`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ttransfer import schedules


@pytest.mark.parametrize("floor", [0.0, 0.05])
@pytest.mark.parametrize("steps", [1, 13, 40])
def test_equals_torch(floor: float, steps: int, oracle: Callable[..., Tensor], values: Callable[..., Tensor]) -> None:
    want = oracle(lambda o: CosineAnnealingLR(o, T_max=steps, eta_min=floor), 0.3, steps + 1)
    torch.testing.assert_close(values(schedules.cosine(0.3, steps, floor=floor), steps + 1), want, rtol=0, atol=1e-12)


def test_stays_at_the_floor(values: Callable[..., Tensor]) -> None:
    assert values(schedules.cosine(0.3, 4, floor=0.1), 12)[4:].tolist() == [0.1] * 8
