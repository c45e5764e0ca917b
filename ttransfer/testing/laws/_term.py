"""Laws on what a term has of its own: parameters, state, numbers, and its place in a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer.core._types import Tree
from ttransfer.testing._law import Broken, Law, law
from ttransfer.testing._subject import Inputs, show
from ttransfer.testing.laws import _step, _step_modes, _step_sums
from ttransfer.testing.laws._optimizer_tools import apart, kinds
from ttransfer.testing.laws._step_tools import agree, copied
from ttransfer.testing.laws._term_tools import TERM, TermSubject, first_state, value
from ttransfer.testing.laws._tools import whenever

__all__ = ["LAWS"]

STEP = 1e-5


def _has_memory(subject: TermSubject) -> bool:
    return bool(tree.leaves(subject.memory))


def _has_start(subject: TermSubject) -> bool:
    return bool(subject.own) or _has_memory(subject)


def _start(subject: TermSubject, seed: int, by: float = 1.0) -> Tree:
    batch = tree.map(lambda x: x * by if x.is_floating_point() else x, subject.step.batch)
    state = first_state(subject.step.step, batch, seed)
    return {"parameters": state.trainable["terms"][TERM], "state": state.terms[TERM]}


@law(_has_start)
def initial_parameters(subject: TermSubject) -> None:
    """Parameters and state begin as the seed and the readings' shapes say, finite, and are fresh each time.

    Broken by: a draw from a generator of its own, statistics of a first batch, one tensor handed out again and again.
    """
    one = _start(subject, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        other = _start(subject, 0, by=-0.5)
    agree("two starts from one seed, on readings of other values", other, one)
    owners = {x.untyped_storage().data_ptr() for x in tree.leaves(one) if x.numel()}
    for path, x in tree.paths(other).items():
        if not bool(x.isfinite().all()):
            raise Broken(f"{path} starts as {x.tolist()}")
        if x.numel() and x.untyped_storage().data_ptr() in owners:
            raise Broken(f"two starts share the storage of {path}")


@law(lambda s: None if s.own else False)
def seed_decides(subject: TermSubject) -> None:
    """Another seed gives other parameters.

    Broken by: a constant start; members of an ensemble then begin alike.
    """
    if not apart(_start(subject, 1)["parameters"], _start(subject, 0)["parameters"], relative=0.0):
        raise Broken("two seeds give the same parameters")


def _gradients(subject: TermSubject, inputs: Inputs) -> dict[str, Tensor]:
    """The gradient by the term's own parameters at one input."""
    own = {name: x.detach().clone().requires_grad_() for name, x in subject.own.items()}
    out = subject.value(list(inputs), own=own)[0]
    if not out.requires_grad:
        return {name: torch.zeros_like(x) for name, x in own.items()}
    grads = torch.autograd.grad(out, list(own.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(own, grads, strict=True))


@law(lambda s: bool(s.own))
def own_parameters_learn(subject: TermSubject) -> None:
    """Every parameter of the term, those of its pipes among them, gets a gradient somewhere.

    Broken by: a parameter that is made and not used, a detach between it and the value.
    """
    idle = dict.fromkeys(subject.own)

    def test(inputs: Inputs) -> None:
        for name, grad in _gradients(subject, inputs).items():
            if bool((grad != 0).any()):
                idle.pop(name, None)

    whenever(subject.loss, test, "generic", rows=(max(3, subject.loss.fewest), 6), least=3)
    if idle:
        raise Broken(f"these get no gradient for any input: {', '.join(idle)}")


@law(lambda s: bool(s.own))
def own_gradients(subject: TermSubject) -> None:
    """The gradient by the term's own parameters is the derivative of the value.

    Broken by: a detach between a parameter and a part of the value, a gradient reversed for the term itself too.
    """

    def test(inputs: Inputs) -> None:
        for name, grad in _gradients(subject, inputs).items():
            generator = torch.Generator().manual_seed(3)
            along = torch.randn(grad.shape, generator=generator, dtype=grad.dtype)
            up, down = (
                subject.value(list(inputs), own={**subject.own, name: subject.own[name] + by * along})[0].item()
                for by in (STEP, -STEP)
            )
            seen, said = (up - down) / (2 * STEP), (grad * along).sum().item()
            if not abs(seen - said) <= 1e-4 * (1e-3 + abs(seen)) + 1e-10 * (1 + abs(up)) / STEP:
                what = f"along a direction of {name} the value rises by {seen:.9g}, and the gradient says {said:.9g}"
                raise Broken(f"{what}\n{show(subject.loss, inputs)}")

    whenever(subject.loss, test, "generic", rows=(max(2, subject.loss.fewest), 5), least=2)


@law(_has_start)
def own_untouched(subject: TermSubject) -> None:
    """A term leaves its parameters, its state and its numbers as they were; a new state is returned.

    Broken by: a running mean or a queue written in place.
    """

    def test(inputs: Inputs) -> None:
        own, memory, numbers = copied((subject.own, subject.memory, subject.all_numbers))
        with torch.no_grad():
            subject.value(list(inputs), own=own, memory=memory, numbers=numbers)
        pairs = ((own, subject.own), (memory, subject.memory), (numbers, subject.all_numbers))
        for what, (after, before) in zip(("parameters", "state", "numbers"), pairs, strict=True):
            if found := apart(after, before, relative=0.0, least=0.0):
                raise Broken(f"it changed its {what}: {found}\n{show(subject.loss, inputs)}")

    whenever(subject.loss, test, "generic")


@law(_has_memory)
def state_moves(subject: TermSubject) -> None:
    """The state keeps its names, shapes and dtypes, stays finite, and takes up something of what is read.

    Broken by: a new state that is computed and not returned, an average that starts and stays at 0, a shape that
    follows the batch.
    """
    before, changed = kinds(subject.memory), False

    def test(inputs: Inputs) -> None:
        nonlocal changed
        after = subject.value(list(inputs))[1]
        if kinds(after) != before:
            raise Broken(f"the state was {before} and is {kinds(after)}\n{show(subject.loss, inputs)}")
        for path, x in tree.paths(after).items():
            if not bool(x.isfinite().all()):
                raise Broken(f"the state {path} is not finite\n{show(subject.loss, inputs, state=x)}")
        changed = changed or bool(apart(after, subject.memory, relative=0.0, least=0.0))

    whenever(subject.loss, test, "generic")
    if not changed:
        raise Broken("the state stays the same whatever is read")


@law(lambda s: None if _has_memory(s) else False)
def state_counts(subject: TermSubject) -> None:
    """The value depends on the state.

    Broken by: a state that is kept for the logs alone.
    """
    other = tree.map(lambda x: x * 1.5 + 0.25 if x.is_floating_point() else x, subject.memory)
    seen: list[bool] = []

    def test(inputs: Inputs) -> None:
        here, there = (subject.value(list(inputs), memory=m)[0].item() for m in (subject.memory, other))
        seen.append(here != there)

    whenever(subject.loss, test, "generic")
    if not any(seen):
        raise Broken("the value is the same whatever the state is")


@law(lambda s: bool(s.numbers))
def numbers_are_differentiable(subject: TermSubject) -> None:
    """The derivative of the value by each of the term's numbers is right.

    Broken by: float() or .item() on a number, .detach(), a number that is rounded or compared.
    """

    def test(inputs: Inputs) -> None:
        def at(numbers: Mapping[str, Tensor]) -> Tensor:
            return subject.value(list(inputs), numbers={**subject.all_numbers, **numbers})[0]

        said = torch.func.grad(at)(subject.numbers)
        for name, x in subject.numbers.items():
            step = STEP * max(abs(x.item()), 1e-2)
            up, down = (at({**subject.numbers, name: x + by}).item() for by in (step, -step))
            seen, rounding = (up - down) / (2 * step), 1e-12 * (1 + abs(up)) / step
            if not abs(seen - said[name].item()) <= 1e-4 * abs(seen) + 1e-7 + rounding:
                what = f"with {name} the value changes by {seen:.9g}, and the derivative says {said[name].item():.9g}"
                raise Broken(f"{what}\n{show(subject.loss, inputs)}")

    whenever(subject.loss, test, "generic", rows=(max(2, subject.loss.fewest), 5), least=2)


def _counting(subject: TermSubject) -> list[str]:
    # An eps is there for inputs that are not drawn here.
    return [name for name in subject.numbers if not name.rsplit(".", 1)[-1].startswith("eps")]


@law(lambda s: bool(_counting(s)))
def every_number_counts(subject: TermSubject) -> None:
    """Each of the term's numbers changes its value or its gradient.

    Broken by: a number that is declared and never used, or used as it was first given.
    """
    idle = dict.fromkeys(_counting(subject))

    def test(inputs: Inputs) -> None:
        def looked_at(numbers: Mapping[str, Tensor]) -> Tree:
            return _seen(subject, inputs, {**subject.all_numbers, **numbers})

        before = looked_at({})
        for name in list(idle):
            if any(apart(looked_at({name: subject.numbers[name] * by + 0.01}), before) for by in (0.5, 2.0)):
                idle.pop(name)

    whenever(subject.loss, test, "generic", rows=(max(3, subject.loss.fewest), 6), least=3)
    for name in idle:
        raise Broken(f"value and gradient are the same whatever {name} is")


def _seen(subject: TermSubject, inputs: Inputs, numbers: Mapping[str, Tensor]) -> Tree:
    leaves = {i: inputs[i].detach().clone().requires_grad_() for i in subject.loss.floats()}
    out, memory = subject.value([leaves.get(i, x) for i, x in enumerate(inputs)], numbers=numbers)
    grads = torch.autograd.grad(out, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {"value": out.detach(), "gradient": list(grads), "state": memory}


@law()
def value_in_a_step(subject: TermSubject) -> None:
    """What a step logs of the term is its value on what its paths give, and its state goes on.

    Broken by: a value that depends on anything but parameters, state, numbers, count and readings.
    """
    step = subject.step
    for t, batch in enumerate(step.batches()):
        before = step.eager()[t - 1][0] if t else step.first()
        after, logs = step.eager()[t]
        readings = subject.readings(before, batch)
        found, memory = value(
            subject.term,
            before.trainable["terms"][TERM],
            before.terms[TERM],
            subject.numbers_of(before),
            before.step,
            readings,
        )
        room = 1e-9 if step.double else 1e-5
        agree(f"at step {t + 1} the log and the value", {TERM: logs[TERM]}, {TERM: found}, relative=room, least=room)
        agree(f"after step {t + 1} its state, and by hand", after.terms[TERM], memory, relative=room, least=room)


def _in_a_step(one: Law, asked: Callable[[TermSubject], bool] = lambda subject: True) -> Law:
    """A law of steps, for the step that is made of the term."""

    def check(subject: TermSubject) -> None:
        one.check(subject.step)

    check.__doc__ = one.check.__doc__
    return Law(f"step-{one.name}", check, lambda subject: one.claim(subject.step) if asked(subject) else False)


OF_STEPS = (
    _step.deterministic,
    _step.structure,
    _step.inputs_untouched,
    _step.is_finite,
    _step.saved_and_loaded,
    _step.other_numbers_of_rows,
    _step_sums.loss_is_the_sum,
    _step_sums.follows_the_gradient,
    _step_sums.no_weight_no_term,
    _step_sums.guarded,
    _step_sums.micro_batches,
    _step_modes.members,
)

LAWS = (
    initial_parameters,
    seed_decides,
    own_parameters_learn,
    own_gradients,
    own_untouched,
    state_moves,
    state_counts,
    numbers_are_differentiable,
    every_number_counts,
    value_in_a_step,
    *map(_in_a_step, OF_STEPS),
    # Of a term without anything of its own the same law of losses says as much, in half the time.
    _in_a_step(_step_modes.one_graph, _has_start),
)
