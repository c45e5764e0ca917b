"""`optim.apply_updates` and `optim.hyper_at`."""

from __future__ import annotations

import pytest
import torch

from ttransfer import optim, schedules


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_keeps_each_parameters_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    params = {"w": torch.ones(shape, dtype=dtype)}
    for wider in (torch.float32, torch.float64):
        new = optim.apply_updates(params, {"w": torch.full(shape, 0.5, dtype=wider)})
        assert new["w"].dtype == dtype
        assert new["w"].shape == shape
        assert (new["w"] == 1.5).all()


def test_adds_in_the_wider_dtype() -> None:
    # 1 + 2**-8 is halfway between two bfloat16 numbers; a little more rounds up, unless it is rounded first.
    update = torch.tensor([2.0**-8 + 2.0**-18])
    new = optim.apply_updates({"w": torch.ones(1, dtype=torch.bfloat16)}, {"w": update})
    assert new["w"].item() == 1.0 + 2.0**-7


def test_hyper_at_evaluates_schedules() -> None:
    opt = optim.chain(optim.clip_by_norm(2), adam=optim.adam(schedules.linear(1.0, 0.0, 10), eps=torch.tensor(0.25)))
    for step in (3, torch.tensor(3), torch.tensor(3, dtype=torch.int64)):
        hyper = optim.hyper_at(opt, step)
        assert hyper.keys() == opt.hyper.keys()
        assert all(h.dtype == torch.float64 and h.shape == () for h in hyper.values())
        assert {k: h.item() for k, h in hyper.items()} == pytest.approx(
            {"max_norm": 2.0, "adam.lr": 0.7, "adam.beta1": 0.9, "adam.beta2": 0.999, "adam.eps": 0.25}, rel=1e-15
        )
