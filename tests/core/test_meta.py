"""Gradients through the update: a validation loss with respect to hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ttransfer as tt
from tests.support.nets import Conv, conv, images, mlp, vectors

BATCHES = [images(i) for i in range(4)]
VALIDATION = images(9)["source"]


def kd_step(optimizer: tt.Optimizer, p: float = 0.0) -> tt.Step:
    return tt.step(
        {"student": tt.functional(conv(1, p=p)), "teacher": tt.functional(conv(2))},
        optimizer,
        trainable=("student",),
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=4.0, weight=0.5),
    )


def with_hyper(state: tt.State, hyper: dict[str, Tensor]) -> tt.State:
    """Torch 2.8 traces neither a slice of a NamedTuple nor `_replace`."""
    return tt.State(
        state.trainable, state.frozen, state.buffers, state.terms, state.opt, state.ema, hyper, state.step, state.seed
    )


def validation_loss(step: tt.Step, state: tt.State, name: str, steps: int) -> Callable[[Tensor], Tensor]:
    """The loss on held-out data after some updates, as a function of one hyper-parameter."""
    # With batch statistics: running ones are written without a gradient, by torch itself.
    apply = tt.functional(Conv().double(), mode="train").apply

    def loss(value: Tensor) -> Tensor:
        now = with_hyper(state, {**state.hyper, name: value})
        for batch in BATCHES[:steps]:
            now, _ = step.update(now, batch)
        out = apply(now.trainable["student"], now.buffers["student"], VALIDATION["x"])
        return F.cross_entropy(out.value, VALIDATION["y"])

    return loss


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (tt.optim.sgd(0.1, momentum=0.9), "kd.temperature"),
        # A larger eps: Adam's first step is nearly a sign, whose derivative is nothing.
        (tt.optim.adam(1e-2, eps=0.1), "kd.temperature"),
        (tt.optim.sgd(0.1, momentum=0.9), "kd.weight"),
        (tt.optim.sgd(0.1), "optim.lr"),
    ],
    ids=["sgd-temperature", "adam-temperature", "sgd-weight", "sgd-lr"],
)
def test_meta_gradient_equals_finite_differences(optimizer: tt.Optimizer, name: str, steps: int) -> None:
    step = kd_step(optimizer)
    state = step.init(BATCHES[0])
    loss = validation_loss(step, state, name, steps)
    at = state.hyper[name]
    exact = torch.func.grad(loss)(at).item()
    # Small enough not to cross a kink of the ReLUs, large enough for float64.
    e = 1e-5 * at.item()
    approximate = ((loss(at + e) - loss(at - e)) / (2 * e)).item()
    assert exact != 0.0
    assert exact == pytest.approx(approximate, rel=1e-5)


def test_meta_gradient_with_dropout_is_of_the_masks_that_were_drawn() -> None:
    step = kd_step(tt.optim.sgd(0.1), p=0.4)
    state = step.init(BATCHES[0])
    loss = validation_loss(step, state, "kd.temperature", 3)
    at = state.hyper["kd.temperature"]
    approximate = (loss(at + 4e-5) - loss(at - 4e-5)) / 8e-5
    assert torch.func.grad(loss)(at).item() == pytest.approx(approximate.item(), rel=1e-5)


def test_compiled_meta_gradient_equals_eager() -> None:
    step = kd_step(tt.optim.adam(1e-2))
    state = step.init(BATCHES[0])
    gradient = torch.func.grad(validation_loss(step, state, "kd.temperature", 1))
    at = state.hyper["kd.temperature"]
    compiled = torch.compile(gradient, backend="aot_eager", fullgraph=True)
    assert compiled(at).item() == pytest.approx(gradient(at).item(), rel=1e-9)


def test_meta_gradients_of_a_sweep_at_once() -> None:
    """vmap over the gradient through the update, on a net without buffers."""
    step = tt.step(
        {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))},
        tt.optim.sgd(0.1),
        trainable=("student",),
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=4.0),
    )
    batch, held_out = vectors(0), vectors(9)["source"]
    state = step.init(batch)
    apply = tt.functional(mlp(1)).apply

    def loss(temperature: Tensor) -> Tensor:
        hyper = {**state.hyper, "kd.temperature": temperature}
        now, _ = step.update(with_hyper(state, hyper), batch)
        return F.cross_entropy(apply(now.trainable["student"], {}, held_out["x"]).value, held_out["y"])

    at = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    together = torch.func.vmap(torch.func.grad(loss))(at)
    assert torch.allclose(together, torch.stack([torch.func.grad(loss)(t) for t in at]), rtol=1e-9, atol=0)


def test_running_statistics_carry_no_gradient() -> None:
    """What torch leaves out is left out here too: evaluated on running statistics, three steps differ."""
    step = kd_step(tt.optim.sgd(0.1))
    state = step.init(BATCHES[0])
    apply = tt.functional(Conv().double(), mode="eval").apply

    def loss(rate: Tensor) -> Tensor:
        now = with_hyper(state, {**state.hyper, "optim.lr": rate})
        for batch in BATCHES[:2]:
            now, _ = step.update(now, batch)
        return apply(now.trainable["student"], now.buffers["student"], VALIDATION["x"]).value.square().mean()

    at = state.hyper["optim.lr"]
    approximate = ((loss(at + 1e-6) - loss(at - 1e-6)) / 2e-6).item()
    exact = torch.func.grad(loss)(at).item()
    assert exact == pytest.approx(approximate, rel=0.1)
    assert exact != pytest.approx(approximate, rel=1e-4)


def test_the_guide_s_meta_gradient_through_set_hyper_and_predict() -> None:
    step = kd_step(tt.optim.sgd(0.1))
    state = step.init(BATCHES[0])

    def loss(temperature: Tensor) -> Tensor:
        now = tt.set_hyper(state, {"kd.temperature": temperature})
        now, _ = step.update(now, BATCHES[0])
        return F.cross_entropy(tt.predict(step, now, "student")(VALIDATION["x"]), VALIDATION["y"])

    at = torch.tensor(4.0, dtype=torch.float64)
    approximate = ((loss(at + 1e-5) - loss(at - 1e-5)) / 2e-5).item()
    exact = torch.func.grad(loss)(at).item()
    assert exact != 0.0
    assert exact == pytest.approx(approximate, rel=1e-5)
