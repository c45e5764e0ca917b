"""`optim.sgd` against `torch.optim.SGD`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from ttransfer import TransferError, optim, schedules

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "momentum, decay": {"momentum": 0.9, "weight_decay": 0.1},
    "dampening": {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
}
cases = pytest.mark.parametrize("keywords", CASES.values(), ids=CASES.keys())


@cases
def test_equals_torch(
    keywords: dict[str, Any], problem: Any, train: Any, oracle: Any, same: Callable[..., None]
) -> None:
    want = oracle(lambda p: torch.optim.SGD(p.values(), 0.05, **keywords), problem(), 25)
    same(train(optim.sgd(0.05, **keywords), problem(), 25), want)


@cases
def test_with_a_schedule_equals_torch(
    keywords: dict[str, Any], problem: Any, train: Any, oracle: Any, same: Any
) -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> StepLR:
        return StepLR(optimizer, step_size=6, gamma=0.4)

    want = oracle(lambda p: torch.optim.SGD(p.values(), 0.05, **keywords), problem(), 25, schedule=schedule)
    same(train(optim.sgd(schedules.step(0.05, every=6, factor=0.4), **keywords), problem(), 25), want)


def test_in_float32_equals_torch(problem: Any, train: Any, oracle: Any, same: Callable[..., None]) -> None:
    keywords = CASES["momentum, decay"]
    want = oracle(lambda p: torch.optim.SGD(p.values(), 0.05, **keywords), problem(torch.float32), 25)
    same(train(optim.sgd(0.05, **keywords), problem(torch.float32), 25), want, 1e-5)


def test_without_momentum_keeps_nothing(problem: Any) -> None:
    for zero in (0.0, 0):
        opt = optim.sgd(0.1, momentum=zero)
        assert opt.hyper == {"lr": 0.1, "weight_decay": 0.0}
        assert opt.init(problem()) == {}


def test_momentum_that_may_change_keeps_its_buffer(problem: Any, train: Any, same: Callable[..., None]) -> None:
    opt = optim.sgd(0.1, momentum=torch.tensor(0.0))
    assert set(opt.hyper) == {"lr", "weight_decay", "momentum", "dampening"}
    same(train(opt, problem(), 10), train(optim.sgd(0.1), problem(), 10))
    moved = train(opt, problem(), 10, hyper={"momentum": torch.tensor(0.9, dtype=torch.float64)})
    same(moved, train(optim.sgd(0.1, momentum=0.9), problem(), 10))


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"nesterov": True}, "nesterov=True without momentum"),
        ({"dampening": 0.1}, "wanted momentum with it"),
        ({"dampening": 0.1, "nesterov": True, "momentum": 0.9}, "and no nesterov"),
        ({"momentum": "0.9"}, "momentum is '0.9', wanted a number"),
    ],
)
def test_refuses(keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(TransferError, match=says):
        optim.sgd(0.1, **keywords)
