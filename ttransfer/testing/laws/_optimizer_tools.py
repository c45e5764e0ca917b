"""An optimizer with what is known of it: how its laws draw problems, run it, and say what they found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer.core._types import Optimizer, Tree
from ttransfer.optim._apply import apply_updates, hyper_at
from ttransfer.testing._law import Broken
from ttransfer.testing._subject import for_all
from ttransfer.testing._text import text
from ttransfer.testing.strategies import generic, grid

__all__ = [
    "Moment",
    "OptimizerSubject",
    "Problem",
    "apart",
    "cast",
    "constant",
    "inner",
    "kinds",
    "scaled",
    "size",
    "told",
    "whenever",
]

KINDS = {
    "lr": ("lr", "learning_rate", "step_size"),
    "decay": ("weight_decay", "wd", "l2"),
    "momentum": ("momentum",),
    "beta1": ("beta1", "b1"),
    "beta2": ("beta2", "b2"),
    "eps": ("eps", "epsilon"),
    "clip": ("max_norm", "clip_norm", "max_grad_norm"),
}
"""What a number is, by the last part of its name."""


class Problem(NamedTuple):
    """Parameters, and the gradients of one step after another; float64."""

    params: Tree
    grads: tuple[Tree, ...]


class Moment(NamedTuple):
    """What came of one update."""

    updates: Tree
    params: Tree
    state: Tree


class OptimizerSubject(NamedTuple):
    """What the laws of optimizers are given.

    Attributes:
        name: of the optimizer.
        optimizer: the optimizer.
        example: parameters whose structure is kept; None draws a structure.
        reference: parameters -> an optimizer of torch, or anything else that has a `step()`.
        examples: how many problems a law draws.
    """

    name: str
    optimizer: Optimizer
    example: Tree = None
    reference: Callable[[list[Tensor]], Any] | None = None
    examples: int = 15

    def names(self, kind: str) -> list[str]:
        """Its numbers of a kind."""
        return [name for name in self.optimizer.hyper if name.rsplit(".", 1)[-1] in KINDS[kind]]

    def covers(self, *wanted: str) -> bool:
        """Whether it has numbers of these kinds, and no part of it that has a learning rate goes without them."""
        rates = self.names("lr")

        def reach(name: str) -> str:
            prefix = _prefix(name)
            # A part of a chain that has no rate, as a clip, acts on what the others are given.
            return prefix if any(_prefix(rate) == prefix for rate in rates) else _prefix(prefix[:-1])

        for kind in wanted:
            reaches = [reach(name) for name in self.names(kind)]
            if not reaches or not all(any(rate.startswith(r) for r in reaches) for rate in rates):
                return False
        return True

    def numbers(self, step: int = 0, **changed: float) -> dict[str, Tensor]:
        """Its numbers at a step, those of some kinds changed; a rate that starts at 0 is set to 0.1."""
        numbers = hyper_at(self.optimizer, step)
        for name in self.names("lr"):
            if float(numbers[name]) == 0.0:
                numbers[name] = torch.full_like(numbers[name], 0.1)
        for kind, value in changed.items():
            numbers.update({name: torch.full_like(numbers[name], value) for name in self.names(kind)})
        return numbers

    def run(
        self,
        problem: Problem,
        numbers: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | None = None,
        *,
        still: bool = False,
        update: Callable[..., Any] | None = None,
        state: Tree = None,
    ) -> list[Moment]:
        """Take one step for each gradient.

        Args:
            problem: where to start, and the gradients.
            numbers: for all steps, or one for each; its own at step 0 unless given.
            still: whether the parameters stay where they are.
            update: in place of the optimizer's own.
            state: to start from.

        Raises:
            Broken: if it raises.
        """
        params, moments = problem.params, []
        numbers = self.numbers() if numbers is None else numbers
        try:
            state = self.optimizer.init(params) if state is None else state
            for t, grads in enumerate(problem.grads):
                now = numbers if isinstance(numbers, Mapping) else numbers[t]
                updates, state = (update or self.optimizer.update)(grads, state, params, now)
                params = params if still else apply_updates(params, updates)
                moments.append(Moment(updates, params, state))
        except Exception as error:
            lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
            text = " ".join(lines[:3])[:400]
            raise Broken(f"it raised {type(error).__name__}: {text}\n{told(problem)}") from error
        return moments


def _prefix(name: str) -> str:
    """What stands before a number's own name, with its dot."""
    return name[: name.rfind(".") + 1]


@st.composite
def _problems(draw: DrawFn, subject: OptimizerSubject, steps: int, smooth: bool, scalar: bool) -> Problem:
    like = subject.example
    if like is None:
        rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        sizes: dict[str, Any] = {"student": {"fc.weight": (rows, columns), "fc.bias": (rows,)}}
        sizes["terms"] = {"critic": {"weight": () if scalar else (columns,)}}
        like = {net: _made(part) for net, part in sizes.items()}
    one = generic if smooth else grid

    def filled() -> Tree:
        return tree.map(lambda x: draw(one(tuple(x.shape))), like)

    return Problem(filled(), tuple(filled() for _ in range(steps)))


def _made(sizes: Any) -> Any:
    if isinstance(sizes, dict):
        return {name: _made(inner) for name, inner in sizes.items()}
    return torch.empty(sizes, device="meta")


def whenever(
    subject: OptimizerSubject,
    test: Callable[[Problem], None],
    *,
    steps: int = 1,
    smooth: bool = False,
    scalar: bool = False,
    share: int = 1,
) -> None:
    """Run a test on drawn problems, and let its failure be the smallest.

    Args:
        subject: the optimizer.
        test: of one problem.
        steps: how many gradients.
        smooth: whether to draw numbers no two of which are alike, and none 0.
        scalar: whether one parameter is 0-d.
        share: for a law that takes long: its part of the examples is one in so many.
    """
    for_all(_problems(subject, steps, smooth, scalar), test, examples=max(3, subject.examples // share))


def told(problem: Problem, **more: Tree) -> str:
    """Write a problem, and what was made of it, so that a person can type it in."""
    lines = [f"{name} = {text(x)}" for name, x in tree.paths(problem.params).items()]
    for t, grads in enumerate(problem.grads):
        which = f"gradient {t + 1}" if len(problem.grads) > 1 else "the gradient"
        if not size(grads):
            lines.append(f"{which} is 0 everywhere")
            continue
        lines += [f"{which} of {name} = {text(x)}" for name, x in tree.paths(grads).items()]
    for what, values in more.items():
        named = tree.paths(values)
        lines += [f"{what.replace('_', ' ')}{f' of {n}' * bool(n)} = {text(x)}" for n, x in named.items()]
    return "\n".join(lines)


def kinds(values: Tree) -> dict[str, str]:
    """Path -> shape and dtype of each leaf."""
    return {
        path: f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" if isinstance(x, Tensor) else type(x).__name__
        for path, x in tree.paths(values).items()
    }


def size(values: Tree) -> float:
    """The largest absolute value in a tree."""
    found = [x.detach().double().abs().max().item() for x in tree.leaves(values) if isinstance(x, Tensor) and x.numel()]
    return max([0.0, *found])


def apart(got: Tree, wanted: Tree, *, relative: float = 1e-9, least: float = 1e-15) -> str:
    """Say where two trees of tensors differ by more than rounding; "" if nowhere.

    Args:
        got: one tree.
        wanted: another with the same names.
        relative: the room, in parts of the largest value of the leaf.
        least: the room there is in any case.
    """
    here, there = tree.paths(got), tree.paths(wanted)
    if here.keys() != there.keys():
        return f"the names differ: {sorted(here.keys() ^ there.keys())[0]}"
    for path, x in here.items():
        y = there[path]
        if x.shape != y.shape:
            return f"{path} has shape {tuple(x.shape)}, and {tuple(y.shape)} is wanted"
        if not x.numel():
            continue
        gap = (x.detach().double() - y.detach().double()).abs()
        room = relative * max(size({"": x}), size({"": y})) + least
        # Written so that what is not a number is apart.
        if not bool((gap <= room).all()):
            return f"{path}: {text(x)} and {text(y)}"
    return ""


def scaled(values: Tree, by: float) -> Tree:
    """Multiply every leaf."""
    return tree.map(lambda x: x * by, values)


def inner(a: Tree, b: Tree) -> float:
    """The inner product of two trees with the same names."""
    there = tree.paths(b)
    return sum((x * there[name]).sum().item() for name, x in tree.paths(a).items())


def constant(problem: Problem, steps: int) -> Problem:
    """The problem with its first gradient throughout."""
    return problem._replace(grads=problem.grads[:1] * steps)


def cast(problem: Problem, dtype: torch.dtype) -> Problem:
    """The problem in another precision."""
    return tree.map(lambda x: x.to(dtype), problem)
