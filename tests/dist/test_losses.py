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
# Of parameters alone: no rows are spread. tests/dist/cases.py has such a term.
WITHOUT_ROWS = {tt.losses.ewc, tt.losses.l2, tt.losses.l2_sp}


class Scaled(nn.Module):
    """Each entry of a row by a number, plus a number."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.by = nn.Parameter(1 + torch.randn(shape, generator=generator, dtype=torch.float64) / 4)
        self.plus = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by + self.plus


def loss_of(trial: Trial) -> Any:
    return getattr(trial.subject.fn, "func", trial.subject.fn)


TRIALS = {trial.name: trial for trial in all_trials() if loss_of(trial) not in WITHOUT_ROWS}


def values(subject: Subject, seed: int) -> list[Any]:
    """A value for each argument."""
    if subject.fn is tt.losses.topk_kd:
        # Classes that are saved differ within a row, which a draw by itself does not know.
        student, teacher = torch.randn(2, ROWS, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return [student, *tt.losses.save_topk(teacher, 2)]
    found = [
        sample(a, subject.tags, subject.same_rows, 10 * seed + i, subject.rows or ROWS)
        for i, a in enumerate(subject.arguments)
    ]
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in found]


def built(trial: Trial) -> tuple[tt.Step, list[Any]]:
    """A step whose nets give what the loss trains, and two batches."""
    subject = trial.subject
    of_rows = [i for i, a in enumerate(subject.arguments) if a.has_rows]
    drawn = [values(subject, seed) for seed in range(2)]
    given = {i: drawn[0][i] for i in range(len(subject.arguments)) if i not in of_rows}
    claims, nets, reads = claims_of(subject.fn), {}, []
    batches: list[dict[str, dict[str, Tensor]]] = [{}, {}]
    for i in of_rows:
        a = subject.arguments[i]
        domain = "source" if a.rows == "n" else "target"
        for seed, batch in enumerate(batches):
            batch.setdefault(domain, {})[a.name] = drawn[seed][i].movedim(a.axis, 0)
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


def test_no_loss_is_left_out() -> None:
    losses = {getattr(tt.losses, name) for name in tt.losses.__all__}
    tried = {loss_of(trial) for trial in TRIALS.values()}
    assert {fn for fn in losses - tried - WITHOUT_ROWS if claims_of(fn).own} == set()
