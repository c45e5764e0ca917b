"""`schedules.linear` against `LinearLR`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR

from ttransfer import schedules


@pytest.mark.parametrize(("start", "end"), [(0.25, 1.0), (1.0, 0.0), (0.5, 0.5)])
def test_equals_torch(start: float, end: float, oracle: Callable[..., Tensor], values: Callable[..., Tensor]) -> None:
    want = oracle(lambda o: LinearLR(o, start_factor=start, end_factor=end, total_iters=9), 0.3, 20)
    got = values(schedules.linear(0.3 * start, 0.3 * end, 9), 20)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
