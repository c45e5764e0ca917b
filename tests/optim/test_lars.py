"""`optim.lars` against a slow loop written from Algorithm 1 of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer import optim, schedules


def slow(grads: list[dict[str, list[float]]], start: dict[str, list[float]], decay: float) -> dict[str, list[float]]:
    """Number by number, in Python floats, with the paper's polynomial learning rate."""
    momentum, trust = 0.9, 0.02
    layers = {k: list(x) for k, x in start.items()}
    v = {k: [0.0] * len(x) for k, x in start.items()}
    for t, step in enumerate(grads):
        rate = 2.0 * (1 - t / len(grads)) ** 2
        for k, x in layers.items():
            size, below = math.hypot(*x), math.hypot(*step[k]) + decay * math.hypot(*x)
            local = trust * size / below if size > 0 and below > 0 else 1.0
            v[k] = [momentum * vi + rate * local * (g + decay * xi) for vi, g, xi in zip(v[k], step[k], x, strict=True)]
            layers[k] = [xi - vi for xi, vi in zip(x, v[k], strict=True)]
    return layers


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_the_paper(decay: float, problem: Callable[..., Any]) -> None:
    params = problem()
    opt = optim.lars(schedules.polynomial(2.0, 0.0, 20), weight_decay=decay, trust_coefficient=0.02)
    generator = torch.Generator().manual_seed(1)

    def draw(p: Tensor) -> Tensor:
        return torch.randn(p.shape, generator=generator, dtype=p.dtype)

    def plain(values: Any) -> dict[str, list[float]]:
        return {path: leaf.flatten().tolist() for path, leaf in tree.paths(values).items()}

    grads = [tree.map(draw, params) for _ in range(20)]
    want = slow([plain(g) for g in grads], plain(params), decay)
    state = opt.init(params)
    for t, g in enumerate(grads):
        updates, state = opt.update(g, state, params, optim.hyper_at(opt, t))
        params = optim.apply_updates(params, updates)
    got = plain(params)
    for path, values in want.items():
        assert got[path] == pytest.approx(values, rel=1e-12, abs=1e-12), path


def test_without_gradient_or_parameter_nothing_is_nan() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    for decay in (0.0, 0.1):
        opt = optim.lars(0.1, weight_decay=decay)
        for g, p in ((zero, zero), (zero, one), (one, zero)):
            updates, _ = opt.update({"w": g}, opt.init({"w": p}), {"w": p}, optim.hyper_at(opt))
            # A parameter at 0 takes plain steps; with decay and no gradient the local rate is trust / decay.
            want = -0.1 * g if p is zero else -0.1 * 1e-3 * one * (decay > 0)
            torch.testing.assert_close(updates["w"], want)
