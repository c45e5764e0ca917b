"""Every loss of the library, sharded: equal to one process that has all rows, by its own word on rows alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ttransfer as tt
from tests.support.sharded import gap
from tests.support.trials import all_trials
from ttransfer._claims import claims_of
from ttransfer.testing import Trial
from ttransfer.testing._infer import sample
from ttransfer.testing._subject import Subject

ROWS = 5
TRIALS = {trial.name: trial for trial in all_trials() if trial.subject.given is None and trial.subject.rows is None}


class Scaled(nn.Module):
    """Each entry of a row by a number, plus a number."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.by = nn.Parameter(1 + torch.randn(shape, generator=generator, dtype=torch.float64) / 4)
        self.plus = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by + self.plus


def value(subject: Subject, i: int, seed: int) -> Any:
    x = sample(subject.arguments[i], subject.tags, subject.same_rows, 10 * seed + i, ROWS)
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def built(trial: Trial) -> tuple[tt.Step, list[Any]]:
    """A step whose nets give what the loss trains, and two batches."""
    subject = trial.subject
    of_rows = [i for i, a in enumerate(subject.arguments) if a.has_rows]
    given = {i: value(subject, i, 0) for i in range(len(subject.arguments)) if i not in of_rows}
    claims, nets, reads = claims_of(subject.fn), {}, []
    batches: list[dict[str, dict[str, Tensor]]] = [{}, {}]
    for i in of_rows:
        a = subject.arguments[i]
        domain = "source" if a.rows == "n" else "target"
        for seed, batch in enumerate(batches):
            batch.setdefault(domain, {})[a.name] = value(subject, i, seed).movedim(a.axis, 0)
        read = f"{domain}.{a.name}"
        if i in subject.trained():
            net = f"net_{a.name}"
            nets[net] = tt.functional(Scaled(tuple(batches[0][domain][a.name].shape[1:])), inputs=(a.name,))
            read = f"{net}({domain})"
        reads.append(tt.read(read) | (lambda x, axis=a.axis: x.movedim(0, axis)) if a.axis else read)

    def whole(readings: tuple[Any, ...]) -> list[Any]:
        own = iter(readings)
        return [given[i] if i in given else next(own) for i in range(len(subject.arguments))]

    def fn(*readings: Any) -> Tensor:
        return subject.fn(*whole(readings))

    count = claims.count
    counted = None if count is None else lambda *readings: count(*whole(readings))
    term = tt.term(fn, *reads, coupled=claims.coupled, count=counted)
    return tt.step(nets, tt.optim.sgd(0.1, momentum=0.9), trainable=tuple(nets), term=term), batches


@pytest.mark.parametrize("name", TRIALS)
@pytest.mark.parametrize("size", [2, 3])
def test_sharded_is_single(name: str, size: int) -> None:
    step, batches = built(TRIALS[name])
    # As uneven as can be: the first rank has what is left over.
    cuts = [
        {d: [0, *(len(next(iter(f.values()))) - size + 1 + i for i in range(size))] for d, f in batch.items()}
        for batch in batches
    ]
    assert gap(step, batches, cuts) < 1e-11
