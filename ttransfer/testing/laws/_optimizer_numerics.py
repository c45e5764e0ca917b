"""Laws on an optimizer's numbers: finite, in every precision, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer.core._types import Tree
from ttransfer.testing._law import Broken, law
from ttransfer.testing.laws._optimizer_tools import Moment, OptimizerSubject, Problem, apart, cast, told, whenever

__all__ = ["LAWS"]


@law()
def is_finite(subject: OptimizerSubject) -> None:
    """Updates and state are finite for gradients of 0, 1e-12 and 1e4, and for parameters of 0.

    Broken by: a division by a norm or a root that can be 0, an eps that float32 rounds away, a square that overflows.
    """

    def test(problem: Problem) -> None:
        for dtype in (torch.float32, torch.float64):
            for zero in (False, True):
                few = cast(problem, dtype)
                few = few._replace(params=tree.map(torch.zeros_like, few.params)) if zero else few
                for factor in (0.0, 1e-12, 1e4):
                    scaled = few._replace(grads=tree.map(lambda g, by=factor: g * by, few.grads))
                    _check_finite(subject.run(scaled), scaled, f" in {dtype}")

    whenever(subject, test, steps=2, share=3)


def _check_finite(moments: list[Moment], problem: Problem, where: str) -> None:
    for t, moment in enumerate(moments):
        for what, values in (("update", moment.updates), ("state", moment.state)):
            for name, x in tree.paths(values).items():
                if not bool(x.isfinite().all()):
                    raise Broken(f"at step {t + 1}{where} the {what} of {name} is not finite\n{told(problem, found=x)}")


@law()
def float32(subject: OptimizerSubject) -> None:
    """In float32 the updates are within a thousandth of what they are in float64.

    Broken by: 1 - beta taken in float32, a difference of large numbers, a constant of half precision.
    """

    def test(problem: Problem) -> None:
        few = cast(problem, torch.float32)
        here, there = subject.run(few), subject.run(cast(few, torch.float64))
        for t, (a, b) in enumerate(zip(here, there, strict=True)):
            if found := apart(a.updates, b.updates, relative=1e-3):
                raise Broken(f"at step {t + 1}, in float32 and in float64: {found}\n{told(few)}")

    whenever(subject, test, steps=5, smooth=True, share=3)


@law()
def bfloat16(subject: OptimizerSubject) -> None:
    """Beside float32 parameters, bfloat16 ones get finite updates, near what they are in float64.

    Broken by: a sum of squares that is rounded away, a stack of norms of two dtypes, an eps below what 8 bits can tell.
    """

    def test(problem: Problem) -> None:
        few = tree.map(lambda x: x.bfloat16(), problem)
        # Every second parameter is float32, as critics beside a network in half precision are.
        mixed = Problem(_every_second(few.params), tuple(map(_every_second, few.grads)))
        here, there = subject.run(mixed, still=True), subject.run(cast(few, torch.float64), still=True)
        _check_finite(here, few, " in bfloat16")
        pairs = [(x.double(), y) for a, b in zip(here, there, strict=True) for x, y in _leaves(a, b)]
        gap, whole = sum((x - y).abs().sum().item() for x, y in pairs), sum(y.abs().sum().item() for _, y in pairs)
        # All together: where a sign decides, rounding may turn one update round.
        if not gap <= 0.1 * whole + 1e-12:
            raise Broken(
                f"in bfloat16 and in float64 the updates are {gap / whole:.2g} of their size apart\n{told(few)}"
            )

    whenever(subject, test, steps=5, smooth=True, share=3)


def _leaves(one: Moment, other: Moment) -> list[tuple[Tensor, Tensor]]:
    there = tree.paths(other.updates)
    return [(x, there[name]) for name, x in tree.paths(one.updates).items()]


def _every_second(values: Tree) -> Tree:
    return tree.unflatten(values, [x.float() if i % 2 else x for i, x in enumerate(tree.leaves(values))])


@law()
def device(subject: OptimizerSubject) -> None:
    """Whatever an optimizer makes itself is on the parameters' device.

    Broken by: torch.zeros(shape) or torch.tensor(0) without device=, or .item(); it fails on a GPU.
    """
    found: list[Problem] = []
    whenever(subject, found.append, steps=2, share=5)
    problem = found[-1]
    away = tree.map(lambda x: x.to("meta"), problem)
    numbers = {name: x.to("meta") for name, x in subject.numbers().items()}
    state = subject.optimizer.init(away.params)
    for when, values in [("at first", state), *(("then", m.state) for m in subject.run(away, numbers))]:
        for path, x in tree.paths(values).items():
            if x.device.type != "meta":
                raise Broken(f"parameters on another device than {x.device}, and {when} the state has {path} on it")


LAWS = (is_finite, float32, bfloat16, device)
