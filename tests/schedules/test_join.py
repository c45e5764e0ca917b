"""`schedules.join` against `SequentialLR` and `MultiStepLR`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, MultiStepLR, SequentialLR

from ttransfer import TransferError, schedules


# On torch 2.8 SequentialLR itself does what torch warns of.
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
def test_equals_torch(oracle: Callable[..., Tensor], values: Callable[..., Tensor]) -> None:
    def make(optimizer: torch.optim.Optimizer) -> SequentialLR:
        parts = [
            LinearLR(optimizer, start_factor=0.5, total_iters=5),
            CosineAnnealingLR(optimizer, T_max=10),
            ExponentialLR(optimizer, gamma=0.9),
        ]
        return SequentialLR(optimizer, parts, milestones=[5, 12])

    lr = schedules.join(
        (schedules.linear(0.2, 0.4, 5), schedules.cosine(0.4, 10), schedules.step(0.4, every=1, factor=0.9)), (5, 12)
    )
    torch.testing.assert_close(values(lr, 25), oracle(make, 0.4, 25), rtol=0, atol=1e-12)


def test_numbers_make_a_staircase(oracle: Callable[..., Tensor], values: Callable[..., Tensor]) -> None:
    want = oracle(lambda o: MultiStepLR(o, milestones=[4, 9], gamma=0.1), 1.0, 15)
    torch.testing.assert_close(values(schedules.join((1.0, 0.1, 0.01), (4, 9)), 15), want, rtol=0, atol=1e-12)


def test_boundaries_are_numbers_that_can_be_moved() -> None:
    lr = schedules.join((1.0, 0.1), (4,))
    numbers = {name: torch.tensor(number, dtype=torch.float64) for name, number in lr.hyper.items()}
    numbers["boundaries.0"] = torch.tensor(6.0, dtype=torch.float64)
    assert [lr(t, numbers).item() for t in (4, 5, 6)] == [1.0, 1.0, 0.1]


def test_a_part_is_asked_for_its_own_steps_only() -> None:
    # Growing a thousandfold a step, it would be infinite at step 200, and its gradient NaN.
    lr = schedules.join((schedules.step(1.0, every=1, factor=1e3), 0.5), (3,))
    numbers = {name: torch.tensor(number, dtype=torch.float64) for name, number in lr.hyper.items()}
    grads = torch.func.grad(lambda n: lr.apply(torch.tensor(200.0, dtype=torch.float64), n))(numbers)
    assert grads["1"].item() == 1.0
    assert grads["0.factor"].item() == 0.0


@pytest.mark.parametrize(
    ("parts", "boundaries", "says"),
    [
        ((1.0, 0.1), (), "wanted 1 rising boundaries"),
        ((1.0, 0.1, 0.2), (4, 3), "wanted 2 rising boundaries"),
        ((1.0, 0.1, 0.2), (4, 4), "wanted 2 rising boundaries"),
        ((1.0, "low"), (4,), "1 is 'low', wanted a number"),
        ({"a": 1.0, "boundaries.0": 2.0}, (4,), "two numbers are called 'boundaries.0'"),
        ({"a": schedules.constant(1.0), "a.value": 2.0}, (4,), "two numbers are called 'a.value'"),
    ],
)
def test_refuses(parts: Any, boundaries: tuple[float, ...], says: str) -> None:
    with pytest.raises(TransferError, match=says):
        schedules.join(parts, boundaries)
