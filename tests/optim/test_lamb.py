"""`optim.lamb` against a slow loop written from Algorithm 2 of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer import optim


def slow(grads: list[dict[str, list[float]]], start: dict[str, list[float]], decay: float) -> dict[str, list[float]]:
    """Number by number, in Python floats."""
    rate, b1, b2, eps = 0.05, 0.8, 0.95, 1e-6
    layers = {k: list(x) for k, x in start.items()}
    m, v = ({k: [0.0] * len(x) for k, x in start.items()} for _ in range(2))
    for t, step in enumerate(grads, start=1):
        for k, x in layers.items():
            u = []
            for i, g in enumerate(step[k]):
                m[k][i] = b1 * m[k][i] + (1 - b1) * g
                v[k][i] = b2 * v[k][i] + (1 - b2) * g * g
                r = (m[k][i] / (1 - b1**t)) / (math.sqrt(v[k][i] / (1 - b2**t)) + eps)
                u.append(r + decay * x[i])
            size, length = math.hypot(*x), math.hypot(*u)
            ratio = size / length if size > 0 and length > 0 else 1.0
            layers[k] = [xi - rate * ratio * ui for xi, ui in zip(x, u, strict=True)]
    return layers


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_the_paper(decay: float, problem: Callable[..., Any]) -> None:
    params = problem()
    opt = optim.lamb(0.05, beta1=0.8, beta2=0.95, weight_decay=decay)
    generator = torch.Generator().manual_seed(1)

    def draw(p: Tensor) -> Tensor:
        return torch.randn(p.shape, generator=generator, dtype=p.dtype)

    def plain(values: Any) -> dict[str, list[float]]:
        return {path: leaf.flatten().tolist() for path, leaf in tree.paths(values).items()}

    grads = [tree.map(draw, params) for _ in range(20)]
    want = slow([plain(g) for g in grads], plain(params), decay)
    state = opt.init(params)
    for g in grads:
        updates, state = opt.update(g, state, params, optim.hyper_at(opt))
        params = optim.apply_updates(params, updates)
    got = plain(params)
    for path, values in want.items():
        assert got[path] == pytest.approx(values, rel=1e-12, abs=1e-12), path


def test_is_invariant_to_the_scale_of_gradients(problem: Any) -> None:
    opt = optim.lamb(0.05, eps=0.0)
    params = problem()
    one, ten = (
        opt.update(tree.map(lambda p, c=c: c * (p + 1), params), opt.init(params), params, optim.hyper_at(opt))[0]
        for c in (1, 10)
    )
    for a, b in zip(tree.leaves(one), tree.leaves(ten), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
