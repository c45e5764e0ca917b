"""A step with a batch: how its laws run it, and say what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer.core._inputs import inputs_of
from ttransfer.core._rebuild import rebuild
from ttransfer.core._spec import Expression, Plan
from ttransfer.core._step import Step
from ttransfer.core._types import Logs, State, Tree
from ttransfer.testing._law import Broken
from ttransfer.testing.laws._optimizer_tools import apart

__all__ = ["StepSubject", "agree", "copied", "doubled", "subject_of", "trying"]

T = TypeVar("T")
Batch = dict[str, dict[str, Tensor]]


class StepSubject(NamedTuple):
    """What the laws of steps are given.

    Attributes:
        name: of the step.
        step: the step, not compiled.
        batch: an example, of the precision that the laws compute in.
        seed: of the first state.
        double: whether the laws compute in float64.
        parts: phase -> its expression and plan; "" for a step that is no alternation.
        depth: how many dimensions of the state count members.
        stacked: how many leading dimensions of the batch do.
        steps: how many steps a run takes.
        memory: what was computed once, for several laws.
    """

    name: str
    step: Step
    batch: Batch
    seed: int
    double: bool
    parts: Mapping[str, tuple[Expression, Plan]]
    depth: int
    stacked: int
    steps: int
    memory: dict[str, Any]

    @property
    def room(self) -> float:
        """How far apart two ways to compute one number may be, in parts of the largest."""
        return 1e-7 if self.double else 1e-3

    @property
    def least(self) -> float:
        """How far apart they may be in any case: where all is rounding, as behind a normalisation."""
        return 1e-9 if self.double else 1e-5

    def near(self, what: str, got: Tree, wanted: Tree) -> None:
        """Compare two trees that were computed in two ways.

        Raises:
            Broken: where they differ by more than there is room for.
        """
        agree(what, got, wanted, relative=self.room, least=self.least)

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """Return what was made before under a name, or make it."""
        if name not in self.memory:
            self.memory[name] = make()
        return self.memory[name]

    def start(self, step: Step | None = None, seed: int | None = None) -> State:
        """A first state of the step, or of another on the same batch, in the precision of the laws."""
        made = (step or self.step).init(self.batch, self.seed if seed is None else seed)
        return doubled(made) if self.double else made

    def first(self) -> State:
        """The step's first state, a copy."""
        return copied(self.kept("first", self.start))

    def batches(self) -> list[Batch]:
        """Batches of the example's shapes, one for each step of a run: its rows go round, its numbers shrink."""
        rolled: list[Batch] = []
        for t in range(self.steps):

            def other(x: Tensor, t: int = t) -> Tensor:
                x = x.roll(t, self.stacked)
                return x * (1.0 - t / 16) if x.is_floating_point() else x

            rolled.append({domain: {f: other(x) for f, x in fields.items()} for domain, fields in self.batch.items()})
        return rolled

    def run(
        self, step: Step | Callable[..., Any], state: State, batches: list[Batch] | None = None
    ) -> list[tuple[State, Logs]]:
        """Take a step for each batch; the states and batches that are given are left alone by copying them."""
        found: list[tuple[State, Logs]] = []
        state = copied(state)
        for batch in self.batches() if batches is None else batches:
            state, logs = step(state, copied(batch))
            found.append((copied(state), dict(logs)))
        return found

    def eager(self) -> list[tuple[State, Logs]]:
        """The run of the step itself."""
        return self.kept("eager", lambda: trying("a step", lambda: self.run(self.step, self.first())))

    def terms(self) -> Iterator[tuple[str, str, Expression]]:
        """Phase, term and expression of each term; the phase is "" where there are none."""
        for phase, (expression, _) in self.parts.items():
            for name in expression.terms:
                yield phase, name, expression

    def sole(self) -> Expression | None:
        """The expression, where there are no phases."""
        return self.parts[""][0] if "" in self.parts else None

    def drops(self) -> bool:
        """Whether a net that trains drops at random."""
        return any(
            e.nets[net].layout.drops for e, plan in self.parts.values() for net in plan.training if net in e.nets
        )


def doubled(values: T) -> T:
    """Bring all real leaves to float64."""
    return tree.map(lambda x: x.double() if x.is_floating_point() else x, values)


def copied(values: T) -> T:
    """Copy every leaf."""
    return tree.map(torch.clone, values)


def trying(what: str, do: Callable[[], T]) -> T:
    """Do something that a part may fail in.

    Raises:
        Broken: with the error's first words.
    """
    try:
        return do()
    except Broken:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
        raise Broken(f"{what} raised {type(error).__name__}: {' '.join(lines[:3])[:500]}") from error


def agree(what: str, got: Tree, wanted: Tree, *, relative: float = 0.0, least: float = 0.0) -> None:
    """Compare two trees.

    Raises:
        Broken: where they differ by more than there is room for.
    """
    if found := apart(got, wanted, relative=relative, least=least):
        raise Broken(f"{what}: {found}")


def subject_of(name: str, step: Step, batch: Mapping[str, Mapping[str, Tensor]], seed: int, steps: int) -> StepSubject:
    """Find out what is to be known of a step, and whether it runs in float64."""
    transforms = step.spec.transforms
    if transforms and transforms[-1].name == "compile":
        step = rebuild(step.spec.expression, transforms[:-1])
    inputs = inputs_of(step.spec)
    plain: Batch = {domain: dict(fields) for domain, fields in batch.items()}
    subject = StepSubject(name, step, plain, seed, False, inputs.parts, inputs.depth, inputs.stacked, steps, {})
    wide = subject._replace(batch=doubled(plain), double=True)
    try:
        # What a law computes twice in float32 may differ by a whole step, where Adam divides noise by noise.
        state = wide.start()
        after, logs = step(copied(state), copied(wide.batch))
        if not apart(tree.map(_kind, after), tree.map(_kind, state)) and bool(logs["loss"].isfinite().all()):
            return wide
    except Exception:  # whatever a net does not do in float64: the laws then make do with what it does
        pass
    return subject


def _kind(x: Tensor) -> Tensor:
    return torch.tensor([x.element_size(), x.is_floating_point()])
