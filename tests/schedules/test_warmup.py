"""`schedules.warmup` against `LinearLR` alone and before another scheduler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from ttransfer import TransferError, schedules


def test_to_a_number_equals_torch(oracle: Callable[..., Tensor], values: Callable[..., Tensor]) -> None:
    want = oracle(lambda o: LinearLR(o, start_factor=0.25, total_iters=8), 0.4, 20)
    torch.testing.assert_close(values(schedules.warmup(0.4, 8, start=0.1), 20), want, rtol=0, atol=1e-12)


# On torch 2.8 SequentialLR itself does what torch warns of.
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
def test_to_a_schedule_equals_torch(oracle: Callable[..., Tensor], values: Callable[..., Tensor]) -> None:
    def make(optimizer: torch.optim.Optimizer) -> SequentialLR:
        parts = [LinearLR(optimizer, start_factor=0.25, total_iters=8), CosineAnnealingLR(optimizer, T_max=12)]
        return SequentialLR(optimizer, parts, milestones=[8])

    got = values(schedules.warmup(schedules.cosine(0.4, 12), 8, start=0.1), 20)
    torch.testing.assert_close(got, oracle(make, 0.4, 20), rtol=0, atol=1e-12)


def test_begins_at_zero_and_names_what_follows() -> None:
    lr = schedules.warmup(schedules.cosine(0.4, 12), 8)
    assert lr(0).item() == 0.0
    assert lr.hyper == {"steps": 8.0, "start": 0.0, "after.peak": 0.4, "after.steps": 12.0, "after.floor": 0.0}
    assert schedules.warmup(0.4, 8).hyper == {"steps": 8.0, "start": 0.0, "after": 0.4}


def test_without_steps_is_what_follows(values: Callable[..., Tensor]) -> None:
    after = schedules.cosine(0.4, 6)
    assert values(schedules.warmup(after, 0), 8).tolist() == values(after, 8).tolist()


def test_refuses_what_is_neither_number_nor_schedule() -> None:
    with pytest.raises(TransferError, match="warmup: after is 'cosine'"):
        schedules.warmup("cosine", 8)
