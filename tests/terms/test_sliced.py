"""The term draws its lines by the source's first key, and is the loss at them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ttransfer as tt
from tests.support.compare import worst
from tests.support.games import normal, obeys
from tests.support.nets import vectors
from tests.support.sharded import gap
from tests.support.steps import refused, run, small_step
from ttransfer.testing import Tags

READS = ("student(source)", "student(target)")


def value(source: Tensor, target: Tensor, keys: Tensor) -> Tensor:
    lines = tt.normal(keys, source.shape[1], 16, dtype=torch.float64)[0]
    return tt.align.sliced_wasserstein(source, target, lines)


def test_it_is_the_loss_at_drawn_lines() -> None:
    term = tt.terms.sliced_wasserstein(*READS, directions=16)
    readings = [normal(0, 6, 4), normal(1, 3, 4), torch.arange(6) * 7 + 3]
    found, _ = term.apply({}, {}, {}, torch.tensor(0), readings)
    assert torch.equal(found, value(*readings))
    assert term.coupled


def test_laws() -> None:
    term = tt.terms.sliced_wasserstein(*READS, directions=16)
    obeys(term, [normal(0, 6, 4), normal(1, 3, 4), torch.arange(6) * 7 + 3], {}, Tags(row_symmetric=False))


def test_the_same_in_every_mode() -> None:
    step = small_step({"t": tt.terms.sliced_wasserstein(*READS, directions=8)})
    batches = [vectors(seed) for seed in range(3)]
    wanted = run(step, step.init(batches[0]), *batches)
    compiled = tt.compile(step, backend="aot_eager")
    assert worst(run(compiled, compiled.init(batches[0]), *batches), wanted) < 1e-12
    both = tt.ensemble(step, 2)
    many, logs = run(both, both.init(batches[0]), *batches)
    assert worst(tt.member(many, 0), wanted[0]) < 1e-12
    assert logs["t"][0] != logs["t"][1]
    assert gap(step, batches) < 1e-12


@pytest.mark.parametrize("directions", [0, 2.5, "8", True])
def test_what_is_refused(directions: int) -> None:
    refused(
        lambda: tt.terms.sliced_wasserstein(*READS, directions=directions),
        "sliced_wasserstein: wanted a whole number of directions, at least 1",
        repr(directions),
    )
