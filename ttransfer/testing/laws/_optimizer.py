"""Laws on what any optimizer is: a pure function of gradients, state, parameters and numbers."""

from __future__ import annotations

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer.core._types import Tree
from ttransfer.testing._law import Broken, law
from ttransfer.testing.laws._optimizer_tools import OptimizerSubject, Problem, apart, cast, kinds, told, whenever

__all__ = ["LAWS"]


@law()
def initial_state(subject: OptimizerSubject) -> None:
    """The first state is made of tensors that are nobody else's, as precise as the parameters.

    Broken by: a Python counter, the parameters themselves kept as a buffer, one zero tensor for several parameters,
    torch.zeros(shape) without dtype=.
    """

    def test(problem: Problem) -> None:
        for dtype in (torch.float32, torch.float64):
            params = cast(problem, dtype).params
            state = subject.optimizer.init(params)
            owners = {x.untyped_storage().data_ptr(): f"the parameter {n}" for n, x in tree.paths(params).items()}
            for path, x in tree.paths(state).items():
                if not isinstance(x, Tensor):
                    raise Broken(f"the state has {path} = {x!r}, which is no tensor\n{told(problem)}")
                if x.ndim and x.is_floating_point() and torch.promote_types(x.dtype, dtype) != x.dtype:
                    raise Broken(f"parameters of {dtype} gave the state {path} of {x.dtype}\n{told(problem)}")
                where = x.untyped_storage().data_ptr()
                if x.numel() and where in owners:
                    raise Broken(f"{path} of the state shares its storage with {owners[where]}\n{told(problem)}")
                owners[where] = f"{path} of the state"

    whenever(subject, test, share=3)


@law()
def structure(subject: OptimizerSubject) -> None:
    """There is one update for each parameter, of its shape, and the state keeps its names, shapes and dtypes.

    Broken by: a parameter left out, a norm kept with its axis, a counter that turns real, moments made in one dtype
    and returned in another. A state that changes cannot be donated, and its step is compiled again.
    """

    def test(problem: Problem) -> None:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            few = cast(problem, dtype)
            wanted, before = kinds(few.params), kinds(subject.optimizer.init(few.params))
            for t, moment in enumerate(subject.run(few)):
                after, updates = kinds(moment.state), kinds(moment.updates)
                _same_kinds(f"after step {t + 1} the state", before, after, problem)
                _same_kinds(f"at step {t + 1} the update", _shapes(wanted), _shapes(updates), problem)
                for name, kind in updates.items():
                    if kind not in (wanted[name], _wide(wanted[name])):
                        raise Broken(f"{name} is {wanted[name]} and its update {kind}\n{told(problem)}")

    whenever(subject, test, steps=3, share=3)


def _shapes(kinds_: dict[str, str]) -> dict[str, str]:
    return {name: kind.rsplit(" ", 1)[0] for name, kind in kinds_.items()}


def _wide(kind: str) -> str:
    shape, dtype = kind.rsplit(" ", 1)
    return f"{shape} {'float32' if dtype in ('bfloat16', 'float16') else dtype}"


def _same_kinds(what: str, before: dict[str, str], after: dict[str, str], problem: Problem) -> None:
    for name in before.keys() | after.keys():
        old, new = before.get(name, "not there"), after.get(name, "not there")
        if old != new:
            raise Broken(f"{what} has {name} {new}, wanted {old}\n{told(problem)}")


@law()
def inputs_untouched(subject: OptimizerSubject) -> None:
    """Parameters, gradients, state and numbers are left as they were.

    Broken by: an operation in place on the old state (mu.mul_(...)), on the gradients (clipping, weight decay) or on
    the parameters.
    """

    def test(problem: Problem) -> None:
        state, numbers = subject.run(problem._replace(grads=problem.grads[:1]))[0].state, subject.numbers()
        arguments = {"gradients": problem.grads[1], "state": state, "parameters": problem.params, "numbers": numbers}
        kept = tree.map(torch.clone, arguments)
        passed = tree.map(torch.clone, arguments)
        with torch.no_grad():
            subject.optimizer.init(passed["parameters"])
            subject.optimizer.update(*passed.values())
        for what, before in kept.items():
            there = tree.paths(before)
            for name, x in tree.paths(passed[what]).items():
                if not torch.equal(x, there[name]):
                    raise Broken(f"it changed {name} of the {what}\n{told(problem, afterwards=x)}")

    whenever(subject, test, steps=2, share=2)


@law()
def deterministic(subject: OptimizerSubject) -> None:
    """An update is a function of its arguments: whatever was asked between, the same call gives the same bits.

    Broken by: a counter or a buffer kept outside the state, a random number.
    """

    def test(problem: Problem) -> None:
        drawn = torch.get_rng_state()
        once = subject.run(problem)
        if not torch.equal(drawn, torch.get_rng_state()):
            raise Broken(f"it draws from the global generator\n{told(problem)}")
        subject.run(Problem(problem.grads[0], problem.grads[::-1]))
        for t, (a, b) in enumerate(zip(once, subject.run(problem), strict=True)):
            if found := apart((a.updates, a.state), (b.updates, b.state), relative=0.0, least=0.0):
                raise Broken(f"step {t + 1} of two like runs differs: {found}\n{told(problem)}")

    whenever(subject, test, steps=2, share=2)


def _turned(values: Tree) -> Tree:
    if isinstance(values, dict):
        return {name: _turned(values[name]) for name in reversed(values)}
    return values


@law(lambda s: s.example is None or isinstance(s.example, dict))
def order_of_names(subject: OptimizerSubject) -> None:
    """Parameters go by their names: the order of the dict does not matter.

    Broken by: lists of leaves zipped by position, the first or the last parameter singled out.
    """

    def test(problem: Problem) -> None:
        turned = Problem(_turned(problem.params), tuple(map(_turned, problem.grads)))
        for one, other in zip(subject.run(problem), subject.run(turned), strict=True):
            if found := apart(other.updates, one.updates, relative=1e-12):
                raise Broken(f"in another order of names the update is another: {found}\n{told(problem)}")

    whenever(subject, test, steps=2, share=2)


@law()
def strides(subject: OptimizerSubject) -> None:
    """How a tensor lies in memory does not matter.

    Broken by: .view() where .reshape() is meant, a buffer laid out otherwise than its parameter.
    """

    def turned(x: Tensor) -> Tensor:
        return x.movedim(0, -1).contiguous().movedim(-1, 0) if x.ndim > 1 else x

    def test(problem: Problem) -> None:
        for one, other in zip(subject.run(problem), subject.run(tree.map(turned, problem)), strict=True):
            if found := apart(other.updates, one.updates, relative=1e-12):
                raise Broken(f"for tensors that are not contiguous the update is another: {found}\n{told(problem)}")

    whenever(subject, test, steps=2, share=3)


LAWS = (
    initial_state,
    structure,
    inputs_untouched,
    deterministic,
    order_of_names,
    strides,
)
