"""What the tests of schedules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def oracle() -> Callable[..., Tensor]:
    """Return what one of torch's schedulers does to a learning rate, step by step."""

    def rates(make: Callable[[torch.optim.Optimizer], Any], lr: float, steps: int) -> Tensor:
        optimizer = torch.optim.SGD([torch.zeros(1, dtype=torch.float64, requires_grad=True)], lr=lr)
        scheduler = make(optimizer)
        seen: list[float] = []
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return torch.tensor(seen, dtype=torch.float64)

    return rates


@pytest.fixture
def values() -> Callable[..., Tensor]:
    """Return a schedule's values at the steps 0, 1, ..."""

    def at(schedule: Any, steps: int) -> Tensor:
        return torch.stack([schedule(t) for t in range(steps)])

    return at
