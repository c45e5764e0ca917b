"""What the tests of optimizers share: a problem, our loop and torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer import optim


def energy(params: Any) -> Tensor:
    """A smooth loss with curvature, in which every parameter meets every other."""
    student, critic = params["student"], params["terms"]["dann"]
    weight = student["fc.weight"]
    x = torch.linspace(-1, 1, 12, dtype=weight.dtype).reshape(3, 4)
    hidden = torch.tanh(x @ weight.T + student["fc.bias"]) * student["scale"]
    return (hidden @ critic["w"]).square().mean() + hidden.sin().sum() + 0.1 * weight.square().sum()


@pytest.fixture
def loss() -> Callable[[Any], Tensor]:
    """Return the loss that `train` and `oracle` train on."""
    return energy


@pytest.fixture
def problem() -> Callable[..., Any]:
    """Make parameters of a dtype, a 0-d one and one that starts at 0 among them."""

    def make(dtype: torch.dtype = torch.float64) -> Any:
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        student = {"fc.weight": draw(3, 4), "fc.bias": torch.zeros(3, dtype=dtype), "scale": draw()}
        return {"student": student, "terms": {"dann": {"w": draw(3)}}}

    return make


@pytest.fixture
def train() -> Callable[..., Any]:
    """Train with one of our optimizers, by `update` or by what it is wrapped in."""

    def run(
        optimizer: Any, params: Any, steps: int, *, update: Any = None, hyper: dict[str, Tensor] | None = None
    ) -> Any:
        state = optimizer.init(params)
        for t in range(steps):
            numbers = {**optim.hyper_at(optimizer, t), **(hyper or {})}
            grads = torch.func.grad(energy)(params)
            updates, state = (update or optimizer.update)(grads, state, params, numbers)
            params = optim.apply_updates(params, updates)
        return params

    return run


@pytest.fixture
def oracle() -> Callable[..., Any]:
    """Train with one of torch's optimizers, made from the parameters by their dotted names."""

    def run(
        make: Callable[[dict[str, Tensor]], torch.optim.Optimizer],
        params: Any,
        steps: int,
        *,
        schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
        clip: float | None = None,
    ) -> Any:
        params = tree.map(lambda p: p.clone().requires_grad_(), params)
        optimizer = make(tree.paths(params))
        scheduler = schedule(optimizer) if schedule else None
        for _ in range(steps):
            optimizer.zero_grad()
            energy(params).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(tree.leaves(params), clip)
            optimizer.step()
            if scheduler:
                scheduler.step()
        return tree.map(Tensor.detach, params)

    return run


@pytest.fixture
def same() -> Callable[..., None]:
    """Compare two trees in float64."""

    def check(got: Any, want: Any, atol: float = 1e-12) -> None:
        got, want = tree.paths(got), tree.paths(want)
        assert got.keys() == want.keys()
        for path in want:
            torch.testing.assert_close(
                got[path], want[path], rtol=atol, atol=atol, msg=lambda m, path=path: f"{path}: {m}"
            )

    return check
