"""The temperature ascends where the student descends."""

from __future__ import annotations

import pytest
import torch

import ttransfer as tt
from tests.support.games import obeys
from tests.support.nets import mlp, vectors
from tests.support.steps import small_step

NETS = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
READS = ("student(source)", "teacher(source)")


def test_theta_belongs_to_the_term_and_is_pulled_the_other_way() -> None:
    step = small_step({"kd": tt.terms.ctkd(*READS, scale=0.5, weight=2.0)}, NETS, tt.optim.sgd(0.1))
    state, batch = step.init(vectors(0)), vectors(0)
    new, _ = step(state, batch)
    student, teacher = (tt.predict(step, state, name)(batch["source"]["x"]) for name in ("student", "teacher"))

    def at(theta: torch.Tensor) -> torch.Tensor:
        return tt.losses.kd(student, teacher, temperature=1 + 20 * theta.sigmoid())

    theta = state.trainable["terms"]["kd"]["theta"]
    assert theta.item() == 1.0
    wanted = theta + 0.1 * 0.5 * 2.0 * torch.func.grad(at)(theta)
    assert new.trainable["terms"]["kd"]["theta"].item() == pytest.approx(wanted.item(), rel=1e-12)


def test_it_obeys_the_laws_of_terms() -> None:
    why = {
        "own-gradients": "θ's gradient is reversed on purpose",
        "every-number-counts": "the scale is in the gradient of θ alone, and the law looks at the readings'",
    }
    term = tt.terms.ctkd(*READS)
    obeys(term, (torch.randn(4, 3), torch.randn(4, 3)), why)
