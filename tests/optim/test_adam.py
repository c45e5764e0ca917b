"""`optim.adam` and `optim.adamw` against `torch.optim`, and a slow loop for bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import ttransfer.core._tree as tree
from ttransfer import optim, schedules

BETAS = [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)]


@pytest.mark.parametrize("betas", BETAS)
def test_adam_equals_torch(betas: tuple[float, float], problem: Any, train: Any, oracle: Any, same: Any) -> None:
    want = oracle(lambda p: torch.optim.Adam(p.values(), 0.05, betas=betas, eps=1e-6), problem(), 25)
    same(train(optim.adam(0.05, beta1=betas[0], beta2=betas[1], eps=1e-6), problem(), 25), want)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_after_weight_decay_equals_torch(decay: float, problem: Any, train: Any, oracle: Any, same: Any) -> None:
    want = oracle(lambda p: torch.optim.Adam(p.values(), 0.05, weight_decay=decay), problem(), 25)
    same(train(optim.chain(optim.add_weight_decay(decay), optim.adam(0.05)), problem(), 25), want)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_adamw_with_a_schedule_equals_torch(
    betas: tuple[float, float], decay: float, problem: Any, train: Any, oracle: Any, same: Callable[..., None]
) -> None:
    def make(params: dict[str, Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params.values(), 0.05, betas=betas, weight_decay=decay)

    want = oracle(make, problem(), 25, schedule=lambda o: CosineAnnealingLR(o, T_max=20 + 5))
    opt = optim.adamw(schedules.cosine(0.05, 25), beta1=betas[0], beta2=betas[1], weight_decay=decay)
    same(train(opt, problem(), 25), want)


def test_adamw_in_float32_equals_torch(problem: Any, train: Any, oracle: Any, same: Callable[..., None]) -> None:
    want = oracle(lambda p: torch.optim.AdamW(p.values(), 0.01), problem(torch.float32), 25)
    same(train(optim.adamw(0.01), problem(torch.float32), 25), want, 1e-5)


def test_bfloat16_is_updated_in_float32() -> None:
    generator = torch.Generator().manual_seed(5)
    params = {
        "w": torch.randn(7, generator=generator).bfloat16(),
        "scale": torch.randn((), generator=generator).bfloat16(),
    }
    opt = optim.adamw(0.01, weight_decay=0.3)
    state = opt.init(params)
    m, v = ({k: torch.zeros_like(p, dtype=torch.float64) for k, p in params.items()} for _ in range(2))
    slow = {k: p.double() for k, p in params.items()}
    for t in range(1, 26):
        grads = {k: torch.randn(p.shape, generator=generator).bfloat16() for k, p in params.items()}
        updates, state = opt.update(grads, state, params, optim.hyper_at(opt))
        params = optim.apply_updates(params, updates)
        for k, g in grads.items():
            m[k] = 0.9 * m[k] + 0.1 * g.double()
            v[k] = 0.999 * v[k] + 0.001 * g.double() ** 2
            step = m[k] / (1 - 0.9**t) / ((v[k] / (1 - 0.999**t)).sqrt() + 1e-8)
            change = -0.01 * (step + 0.3 * slow[k])
            torch.testing.assert_close(updates[k].double(), change, rtol=1e-5, atol=1e-8)
            slow[k] = (slow[k] + change).bfloat16().double()
        assert tree.map(lambda p: p.dtype, params) == {"w": torch.bfloat16, "scale": torch.bfloat16}
        torch.testing.assert_close({k: p.double() for k, p in params.items()}, slow, rtol=0, atol=0)
        torch.testing.assert_close(state["mu"], {k: x.float() for k, x in m.items()}, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(state["nu"], {k: x.float() for k, x in v.items()}, rtol=1e-5, atol=0)


@pytest.mark.parametrize("make", [optim.adam, optim.adamw, optim.lamb])
def test_a_gradient_of_zero_leaves_no_nan_in_the_meta_gradient(make: Any) -> None:
    opt = make(0.1)
    params = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}

    def after(start: dict[str, Tensor]) -> Tensor:
        state, now = opt.init(start), start
        for _ in range(2):  # the second element has no gradient: its second moment stays 0
            grads = torch.func.grad(lambda p: (p["w"] * torch.tensor([1.0, 0.0]).double()).square().sum())(now)
            updates, state = opt.update(grads, state, now, optim.hyper_at(opt))
            now = optim.apply_updates(now, updates)
        return now["w"].square().sum()

    grad = torch.func.grad(after)(params)["w"]
    assert torch.isfinite(grad).all()
    assert (grad != 0).all()
