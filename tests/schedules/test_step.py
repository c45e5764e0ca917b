"""`schedules.step` against `StepLR`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import StepLR

from ttransfer import TransferError, schedules


@pytest.mark.parametrize("every", [1, 3, 7])
@pytest.mark.parametrize("factor", [0.1, 0.9, 2.0])
def test_equals_torch(every: int, factor: float, oracle: Callable[..., Tensor], values: Callable[..., Tensor]) -> None:
    want = oracle(lambda o: StepLR(o, step_size=every, gamma=factor), 0.3, 22)
    got = values(schedules.step(0.3, every=every, factor=factor), 22)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("every", [0, -1])
def test_refuses_no_steps(every: int) -> None:
    with pytest.raises(TransferError, match="every is"):
        schedules.step(0.3, every=every)
