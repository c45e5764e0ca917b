"""The term draws its directions by the keys, and is the loss at them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import ttransfer as tt
from tests.support.nets import conv, images, mlp, vectors
from tests.support.sharded import gap
from tests.support.steps import TASK, run, small_step

READS = ("student:fn", "target.x", "target:keys")


def test_it_is_the_loss_at_normal_directions() -> None:
    term, net = tt.terms.vat(*READS, radius=0.5), mlp(1)
    x, keys = vectors(0)["target"]["x"], torch.tensor([3, 1, 4, 1])
    value, _ = term.apply({}, {}, {"radius": torch.tensor(0.5).double()}, torch.tensor(0), [net, x, keys])
    direction = tt.normal(keys, *x.shape[1:], dtype=torch.float64)
    assert torch.equal(direction[1], direction[3])
    torch.testing.assert_close(value, tt.align.vat(net, x, direction, radius=0.5), rtol=1e-12, atol=0)


def test_in_a_step_with_batch_normalisation_and_dropout() -> None:
    term = tt.terms.vat(*READS, radius=0.5)
    step = small_step({"task": TASK, "vat": term}, {"student": tt.functional(conv(1, p=0.3))})
    batch = images(0)
    state = step.init(batch, seed=0)
    eager, logs = run(step, state, batch, batch)
    fast, other = run(tt.compile(step, backend="aot_eager"), state, batch, batch)
    assert logs["vat"] > 0
    torch.testing.assert_close(other["vat"], logs["vat"], rtol=1e-9, atol=0)
    torch.testing.assert_close(fast.trainable, eager.trainable, rtol=1e-9, atol=1e-12)
    members = tt.ensemble(step, 2)
    _, both = members(members.init(batch, seed=0), batch)
    assert both["vat"].shape == (2,)
    assert both["vat"].isfinite().all()


def test_it_smooths() -> None:
    task = tt.term(F.cross_entropy, "student(source)", "source.y")
    step = small_step(
        {"task": task, "vat": tt.terms.vat(*READS, coupled=False, weight=3.0)},
        {"student": tt.functional(mlp(1))},
        tt.optim.adam(1e-2),
    )
    batch = vectors(0)
    state, first = step(step.init(batch), batch)
    state, logs = run(step, state, *[batch] * 40)
    assert logs["vat"] < first["vat"] / 2


def test_what_it_claims() -> None:
    assert tt.terms.vat(*READS).coupled
    assert not tt.terms.vat(*READS, coupled=False).coupled


@pytest.mark.parametrize("coupled", [True, False])
def test_sharded_is_single(coupled: bool) -> None:
    term = tt.terms.vat(*READS, radius=0.5, coupled=coupled)
    step = small_step({"task": TASK, "vat": term}, {"student": tt.functional(mlp(1, p=0.3))})
    assert gap(step, [vectors(0), vectors(1)]) < 1e-11
