"""The regressor and the variances belong to the term, and are learned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ttransfer as tt
from tests.support.games import obeys
from tests.support.nets import mlp, vectors
from tests.support.steps import refused, small_step

NETS = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
READS = ("student(source).fc:in", "teacher(source).fc:in")


def slow(student: Tensor, teacher: Tensor, own: dict[str, Tensor]) -> Tensor:
    """The negative log-likelihood of a Gaussian, without its constant, by a loop."""
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher, strict=True):
        mean = own["mean.weight"] @ s + own["mean.bias"]
        for c in range(len(t)):
            variance = (1 + own["alpha"][c].exp()).log() + 1e-5
            total = total + ((mean[c] - t[c]) ** 2 / variance + variance.log()) / 2
    return total / teacher.numel()


def test_it_is_the_loss_of_its_regression() -> None:
    term = tt.terms.vid(*READS, mean=tt.adapters.linear(4), variance=2.0)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, d, generator=generator, dtype=torch.float64) for d in (6, 4))
    own, memory = term.init(generator, [student, teacher])
    assert {name: tuple(p.shape) for name, p in own.items()} == {
        "mean.weight": (4, 6),
        "mean.bias": (4,),
        "alpha": (4,),
    }
    assert torch.allclose(torch.nn.functional.softplus(own["alpha"]) + 1e-5, torch.tensor(2.0, dtype=torch.float64))

    def ours(own: dict[str, Tensor], student: Tensor) -> Tensor:
        return term.apply(own, memory, {}, torch.tensor(0), [student, teacher])[0]

    assert ours(own, student).item() == pytest.approx(slow(student, teacher, own).item(), rel=1e-12)
    mine = torch.func.grad(ours, argnums=(0, 1))(own, student)
    theirs = torch.func.grad(lambda o, s: slow(s, teacher, o), argnums=(0, 1))(own, student)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_it_obeys_the_laws_of_terms() -> None:
    term = tt.terms.vid(*READS, mean=tt.adapters.linear(4))
    obeys(term, (torch.randn(4, 3), torch.randn(4, 4)), {})


def test_variances_follow_what_is_left_to_learn() -> None:
    step = small_step({"vid": tt.terms.vid(*READS, mean=tt.adapters.linear(6))}, NETS, tt.optim.adam(3e-2))
    state, batch = step.init(vectors(0)), vectors(0)
    before = state.trainable["terms"]["vid"]["alpha"]
    _, first = step(state, batch)
    for _ in range(60):
        state, logs = step(state, batch)
    assert logs["vid"] < first["vid"]
    assert (state.trainable["terms"]["vid"]["alpha"] < before).all()


def test_maps_and_what_it_refuses() -> None:
    term = tt.terms.vid(*READS, mean=tt.adapters.conv(5))
    own, _ = term.init(torch.Generator(), [torch.empty(2, 3, 4, 4), torch.empty(2, 5, 4, 4)])
    assert own["alpha"].shape == (5,)
    refused(lambda: tt.terms.vid(*READS, mean=tt.adapters.linear(4), variance=0.0), "a variance above 1e-05, got 0.0")
