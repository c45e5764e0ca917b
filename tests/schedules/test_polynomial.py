"""`schedules.polynomial` against `PolynomialLR`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import PolynomialLR

from ttransfer import schedules


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.5])
def test_equals_torch(power: float, oracle: Callable[..., Tensor], values: Callable[..., Tensor]) -> None:
    want = oracle(lambda o: PolynomialLR(o, total_iters=9, power=power), 0.3, 20)
    got = values(schedules.polynomial(0.3, 0.0, 9, power=power), 20)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_ends_where_it_is_told(values: Callable[..., Tensor]) -> None:
    assert values(schedules.polynomial(0.3, 0.1, 4), 6)[4:].tolist() == [0.1, 0.1]


def test_power_one_is_linear(values: Callable[..., Tensor]) -> None:
    got = values(schedules.polynomial(0.3, 0.1, 7, power=1.0), 10)
    torch.testing.assert_close(got, values(schedules.linear(0.3, 0.1, 7), 10), rtol=0, atol=1e-15)
