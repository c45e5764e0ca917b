"""What is looked at in any optimizer, and reported: nobody need claim it."""

from __future__ import annotations

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer.core._types import Tree
from ttransfer.testing._law import Broken, law
from ttransfer.testing.laws._optimizer_modes import after
from ttransfer.testing.laws._optimizer_tools import (
    OptimizerSubject,
    Problem,
    apart,
    cast,
    kinds,
    scaled,
    told,
    whenever,
)

__all__ = ["LAWS"]


@law(lambda s: None)
def scalar_parameters(subject: OptimizerSubject) -> None:
    """A 0-d parameter and its state keep their dtype.

    Broken by: the 0-d float64 numbers, which turn a 0-d float32 state into float64: cast them to the parameter's.
    """

    def test(problem: Problem) -> None:
        few = cast(problem, torch.float32)
        before = kinds(subject.optimizer.init(few.params))
        for t, moment in enumerate(subject.run(few)):
            for name, kind in kinds(moment.state).items():
                if before.get(name) != kind:
                    raise Broken(
                        f"after step {t + 1} the state has {name} {kind}, not {before.get(name)}\n{told(problem)}"
                    )

    whenever(subject, test, steps=2, scalar=True, share=3)


@law(lambda s: None)
def wide_state(subject: OptimizerSubject) -> None:
    """What is added up for bfloat16 parameters is kept in float32 at least.

    Broken by: buffers in the parameters' dtype; 8 bits lose a gradient that is small beside the sum.
    """

    def test(problem: Problem) -> None:
        for name, kind in kinds(subject.optimizer.init(cast(problem, torch.bfloat16).params)).items():
            if kind.endswith("bfloat16"):
                raise Broken(f"the state has {name} {kind}\n{told(problem)}")

    whenever(subject, test, share=5)


def _alone(subject: OptimizerSubject, problem: Problem, chosen: str) -> str:
    """Say whether a parameter moves otherwise when all others' gradients and values change."""

    def others(values: Tree) -> Tree:
        named = tree.paths(values)
        return tree.unflatten(values, [x if name == chosen else x * 3.0 + 1.0 for name, x in named.items()])

    changed = Problem(others(problem.params), tuple(map(others, problem.grads)))
    for one, other in zip(subject.run(problem), subject.run(changed), strict=True):
        here, there = (tree.paths(m.updates)[chosen] for m in (one, other))
        if found := apart(here, there, relative=1e-9):
            return found
    return ""


@law(lambda s: None)
def each_parameter_by_itself(subject: OptimizerSubject) -> None:
    """A parameter moves as if it were alone.

    Broken by: a norm over all gradients, as in clipping.
    """

    def test(problem: Problem) -> None:
        for name in tree.paths(problem.params):
            if found := _alone(subject, problem, name):
                raise Broken(f"{name} moves otherwise when the others do{found}\n{told(problem)}")

    whenever(subject, test, steps=2, smooth=True, share=5)


@law(lambda s: None)
def each_coordinate_by_itself(subject: OptimizerSubject) -> None:
    """The first step goes against the gradient in every coordinate, and each as if it were alone.

    Broken by: a norm over a tensor, as in LARS and LAMB, or over all, as in clipping.
    """

    def test(problem: Problem) -> None:
        numbers = subject.numbers(decay=0.0)

        def first(values: Problem) -> dict[str, Tensor]:
            return tree.paths(subject.run(values, numbers)[0].updates)

        whole, flipped = first(problem), first(tree.map(lambda x: x.flip(0) if x.ndim else x, problem))
        bent = first(problem._replace(grads=tree.map(_bent, problem.grads)))
        for name, u in whole.items():
            g = tree.paths(problem.grads[0])[name]
            if bool((u * g > 0).any()) or bool(((u == 0) & (g != 0)).any()):
                raise Broken(f"{name} does not move against its gradient everywhere\n{told(problem, update=u)}")
            if apart(flipped[name].flip(0) if u.ndim else flipped[name], u) or apart(bent[name][:1], u[:1]):
                raise Broken(f"the coordinates of {name} are not moved each by itself\n{told(problem)}")

    whenever(subject, test, smooth=True, share=5)


def _bent(x: Tensor) -> Tensor:
    """Change all rows but the first."""
    return torch.cat([x[:1], x[1:] * 3.0 + 1.0])


@law(lambda s: None)
def relative_to_the_weights(subject: OptimizerSubject) -> None:
    """Parameters twice as large move twice as far, as under LARS and LAMB.

    Broken by: a step that does not look at the parameters.
    """

    def test(problem: Problem) -> None:
        numbers = subject.numbers(decay=0.0)
        here = subject.run(problem, numbers)[0].updates
        there = subject.run(problem._replace(params=scaled(problem.params, 2.0)), numbers)[0].updates
        if found := apart(there, scaled(here, 2.0), relative=1e-6):
            raise Broken(f"with parameters twice as large, and twice the step: {found}\n{told(problem)}")

    whenever(subject, test, smooth=True, share=5)


@law(lambda s: None if s.optimizer.hyper else False)
def finite_derivatives_at_rest(subject: OptimizerSubject) -> None:
    """The derivative by each number is finite where gradients are 0.

    Broken by: the root of 0, whose slope is infinite: take it of 1 there, and choose 0 by torch.where.
    """

    def test(problem: Problem) -> None:
        still = problem._replace(grads=tree.map(torch.zeros_like, problem.grads))
        slopes = torch.func.grad(lambda n: after(subject, still, n))(subject.numbers())
        for name, slope in slopes.items():
            if not bool(slope.isfinite()):
                raise Broken(f"with gradients of 0 the derivative by {name} is {slope.item()}\n{told(still)}")

    whenever(subject, test, steps=2, share=5)


LAWS = (
    scalar_parameters,
    wide_state,
    each_parameter_by_itself,
    each_coordinate_by_itself,
    relative_to_the_weights,
    finite_derivatives_at_rest,
)
