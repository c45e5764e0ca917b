"""Laws on modes: a step in one graph, donated, and many at once."""

from __future__ import annotations

import ttransfer.core._tree as tree
from ttransfer.core._members import ensemble, member
from ttransfer.core._types import Batch, Logs, State
from ttransfer.run._compile import compile as compiled
from ttransfer.testing._law import Broken, law
from ttransfer.testing.laws._compiling import compiling, graphs
from ttransfer.testing.laws._step_tools import StepSubject, trying

__all__ = ["LAWS"]


def _compare(subject: StepSubject, what: str, found: list[tuple[State, Logs]]) -> None:
    for t, (a, b) in enumerate(zip(found, subject.eager(), strict=True)):
        subject.near(f"at step {t + 1}, {what}", a, b)


@law()
def one_graph(subject: StepSubject) -> None:
    """A step compiles to one graph, which serves every step and every number, and gives the same.

    Broken by: .item(), a Python branch on a value, indexing by a mask, NumPy or print in a net or a loss.
    """
    with compiling():
        fast = compiled(subject.step, backend="aot_eager")
        found = trying("compiled, a step", lambda: subject.run(fast, subject.first()))
        number = graphs()
    _compare(subject, "compiled and eager", found)
    if number != 1:
        raise Broken(f"{subject.steps} steps took {number} graphs: something but tensors changes from step to step")


@law()
def donated(subject: StepSubject) -> None:
    """A step whose new state is written over the old one, as `tt.compile(step, donate=True)` does, gives the same.

    Broken by: a new state that holds the old one's tensors elsewhere: the parameters of the step before, handed on.
    """

    def over(state: State, batch: Batch) -> tuple[State, Logs]:
        new, logs = subject.step(state, batch)
        for old, fresh in zip(tree.leaves(state), tree.leaves(new), strict=True):
            if fresh is not old:
                old.copy_(fresh)
        return state, logs

    _compare(subject, "donated and not", trying("a step", lambda: subject.run(over, subject.first())))


@law()
def members(subject: StepSubject) -> None:
    """Two runs at once, of two seeds, are the two runs.

    Broken by: .item(), a write in place into what has no members, a random number that is not keyed.
    """
    both = ensemble(subject.step, 2)
    start = trying("the first state of an ensemble", lambda: subject.start(both))
    together = trying("a step of an ensemble", lambda: subject.run(both, start))
    for i in range(2):
        alone = subject.eager() if not i else subject.run(subject.step, subject.start(seed=subject.seed + 1))
        for t, ((a, said), (b, logs)) in enumerate(zip(together, alone, strict=True)):
            mine = member(a, i), {name: x[i] for name, x in said.items()}
            subject.near(f"step {t + 1} of seed {subject.seed + i}, beside another and alone", mine, (b, logs))


LAWS = (one_graph, donated, members)
