"""Laws on modes: an update in one graph, many at once, and differentiated by its numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer.core._types import Tree
from ttransfer.testing._law import Broken, law
from ttransfer.testing.laws._compiling import compiling, graphs
from ttransfer.testing.laws._optimizer_tools import OptimizerSubject, Problem, apart, told, whenever

__all__ = ["LAWS", "after"]

STEP = 1e-6


def _one(subject: OptimizerSubject, steps: int) -> Problem:
    """One plain problem."""
    found: list[Problem] = []
    whenever(subject, found.append, steps=steps, smooth=True, share=subject.examples)
    return found[-1]


@law()
def one_graph(subject: OptimizerSubject) -> None:
    """An update compiles to one graph, which serves every step and every number, and gives the same.

    Broken by: .item(), float(hyper["lr"]), a Python branch on a value or on the count, a count that is no tensor.
    """
    problem = _one(subject, 4)
    # The rate changes on the way, as under a schedule.
    numbers = [subject.numbers(t) for t in range(4)]
    for t, now in enumerate(numbers):
        now.update({name: now[name] * (1 - t / 8) for name in subject.names("lr")})
    wanted = subject.run(problem, numbers)

    def compiled(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        return subject.optimizer.update(grads, state, params, hyper)

    with compiling():
        fast = torch.compile(compiled, backend="aot_eager", fullgraph=True, dynamic=False)
        found = subject.run(problem, numbers, update=fast)
        number = graphs()
    for t, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if there := apart((a.updates, a.state), (b.updates, b.state), relative=1e-10):
            raise Broken(f"at step {t + 1}, compiled and eager: {there}\n{told(problem)}")
    if number != 1:
        raise Broken(f"{len(wanted)} steps took {number} graphs: something but tensors changes from step to step")


@law()
def vmap(subject: OptimizerSubject) -> None:
    """Many runs may be taken at once, each with numbers of its own: vmap agrees with one after the other.

    Broken by: .item(), a Python branch on a value, a write in place into what has no members.
    """
    first = _one(subject, 3)
    problems = [tree.map(lambda x, by=by: x.flip(0) * by if x.ndim else x * by, first) for by in (1.0, -0.5, 2.0)]
    numbers = [{name: x * by for name, x in subject.numbers().items()} for by in (1.0, 0.5, 0.9)]
    alone = [subject.run(problem, now) for problem, now in zip(problems, numbers, strict=True)]
    stacked = tree.map(lambda *x: torch.stack(x), *problems)
    many = {name: torch.stack([now[name] for now in numbers]) for name in numbers[0]}
    start = tree.map(lambda *x: torch.stack(x), *(subject.optimizer.init(p.params) for p in problems))
    together = subject.run(stacked, many, update=torch.vmap(subject.optimizer.update), state=start)
    for i, (problem, moments) in enumerate(zip(problems, alone, strict=True)):
        for t, (a, b) in enumerate(zip(together, moments, strict=True)):
            mine = tree.map(lambda x, i=i: x[i], (a.updates, a.state))
            if there := apart(mine, (b.updates, b.state), relative=1e-10):
                raise Broken(f"at step {t + 1}, beside others and alone: {there}\n{told(problem)}")


def after(subject: OptimizerSubject, problem: Problem, numbers: Mapping[str, Tensor]) -> Tensor:
    """A smooth number that all parameters after the last step enter."""
    params = subject.run(problem, numbers)[-1].params
    parts = [
        (x * torch.linspace(1.0, 2.0, max(1, x.numel())).to(x).reshape(x.shape)).sum() for x in tree.leaves(params)
    ]
    return torch.stack(parts).sum()


def _has_numbers(subject: OptimizerSubject) -> bool:
    return bool(subject.optimizer.hyper)


@law(_has_numbers)
def numbers_are_differentiable(subject: OptimizerSubject) -> None:
    """The derivative of the updated parameters by each number is right.

    Broken by: float() or .item() on a number, .detach(), a number used as it was declared and not as it is given.
    """

    def test(problem: Problem) -> None:
        numbers = _smooth_numbers(subject)
        said = torch.func.grad(lambda n: after(subject, problem, n))(numbers)
        for name, value in numbers.items():
            step = STEP * max(abs(float(value)), 1.0 if float(value) == 0.0 else 1e-2)
            up, down = (after(subject, problem, {**numbers, name: value + by}).item() for by in (step, -step))
            seen, rounding = (up - down) / (2 * step), 1e-13 * (abs(up) + 1) / step
            if not abs(seen - said[name].item()) <= 1e-4 * abs(seen) + 1e-7 + rounding:
                raise Broken(
                    f"with {name} the parameters change by {seen:.9g}, and the derivative says {said[name].item():.9g}"
                    f"\n{told(problem)}"
                )

    whenever(subject, test, steps=3, smooth=True, share=5)


def _smooth_numbers(subject: OptimizerSubject) -> dict[str, Tensor]:
    """Its numbers, where each is felt: no rate, decay or eps too small, and clipping at work."""
    return subject.numbers(lr=0.1, decay=0.1, eps=1e-3, clip=0.5)


@law(_has_numbers)
def every_number_counts(subject: OptimizerSubject) -> None:
    """Each number that is declared changes what comes of some steps.

    Broken by: a rate that is taken from the closure and not from what `update` is given, a momentum or a decay that is
    declared and never applied. Such a number can be set, swept and scheduled, and nothing happens.
    """
    idle = dict.fromkeys(subject.optimizer.hyper)

    def test(problem: Problem) -> None:
        numbers = _smooth_numbers(subject)
        before = after(subject, problem, numbers).item()
        for name in list(idle):
            if after(subject, problem, {**numbers, name: numbers[name] * 0.7 + 1e-3}).item() != before:
                idle.pop(name)

    # Some numbers count every few steps only.
    whenever(subject, test, steps=12, smooth=True, share=5)
    for name in idle:
        raise Broken(f"the updates are the same whatever {name} is")


@law(lambda s: True if s.optimizer.hyper else None)
def gradients_are_differentiable(subject: OptimizerSubject) -> None:
    """The derivative of the updated parameters by the gradients is right, so that a step can be unrolled.

    Broken by: .detach() or .data in the update, no_grad, a custom backward.
    """

    def test(problem: Problem) -> None:
        numbers = _smooth_numbers(subject)
        along = tree.map(torch.cos, problem.grads)

        def moved(by: Tensor) -> Tensor:
            ahead = tree.map(lambda g, d: g + by * d, problem.grads, along)
            return after(subject, problem._replace(grads=ahead), numbers)

        zero = torch.zeros((), dtype=torch.float64)
        said = torch.func.grad(moved)(zero).item()
        up, down = (moved(zero + by).item() for by in (STEP, -STEP))
        seen = (up - down) / (2 * STEP)
        if not abs(seen - said) <= 1e-4 * abs(seen) + 1e-7:
            raise Broken(
                f"along a direction of the gradients the parameters change by {seen:.9g}, and the derivative says "
                f"{said:.9g}\n{told(problem)}"
            )

    whenever(subject, test, steps=3, smooth=True, share=5)


LAWS = (
    one_graph,
    vmap,
    numbers_are_differentiable,
    every_number_counts,
    gradients_are_differentiable,
)
