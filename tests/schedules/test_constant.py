"""`schedules.constant`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ttransfer import schedules


def test_is_the_same_at_every_step(values: Callable[..., Tensor]) -> None:
    assert values(schedules.constant(0.3), 5).tolist() == [0.3] * 5


def test_follows_its_number() -> None:
    value = schedules.constant(0.3)(7, {"value": torch.tensor(2.0, dtype=torch.float64)})
    assert value.item() == 2.0
