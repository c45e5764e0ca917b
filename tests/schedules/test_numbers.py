"""What the schedules share."""

from __future__ import annotations

import pytest
import torch

from ttransfer import TransferError, schedules
from ttransfer.schedules._numbers import progress, reals

F64 = torch.float64


@pytest.mark.parametrize(("step", "want"), [(0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)])
def test_progress(step: int, want: float) -> None:
    assert progress(torch.tensor(step, dtype=F64), torch.tensor(4.0, dtype=F64)).item() == want


def test_progress_over_no_steps_is_done_with_a_finite_gradient() -> None:
    value, grad = torch.func.vjp(lambda n: progress(torch.tensor(0.0, dtype=F64), n), torch.tensor(0.0, dtype=F64))
    assert value.item() == 1.0
    assert grad(torch.tensor(1.0, dtype=F64))[0].item() == 0.0


def test_reals_are_floats() -> None:
    assert reals("linear", steps=3, end=torch.tensor(0.5).item()) == {"steps": 3.0, "end": 0.5}


@pytest.mark.parametrize("value", ["3", None, True, 1j])
def test_reals_refuse(value: object) -> None:
    with pytest.raises(TransferError, match=r"schedules.linear: steps is .*, wanted a number"):
        schedules.linear(0.0, 1.0, value)


def test_a_schedule_in_the_place_of_a_number_is_refused_with_the_cure() -> None:
    with pytest.raises(TransferError, match="schedules nest in warmup and join alone"):
        schedules.cosine(schedules.constant(1.0), 10)
