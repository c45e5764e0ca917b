"""Laws on the gradients of maps, and on what somebody else's slow formula says."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer.testing._law import Broken
from ttransfer.testing._text import text
from ttransfer.testing.laws._map_pure import for_inputs, two
from ttransfer.testing.laws._map_subject import MapSubject, Trees, asked, place, pull, run, told, weighed
from ttransfer.testing.laws._map_trees import Tensors, change, reals, seeded, spread, unlike

__all__ = ["LAWS", "OWN", "check_finite"]

STEPS = (1e-5, 1e-7)  # a kink that lies between two points of the one does not between those of the other
ROWS = 6


def _slope(subject: MapSubject, inputs: Trees, i: int, direction: Tensors, step: float) -> tuple[float, float]:
    """The rise of the result along a direction, and how far off rounding may put it."""

    def at(sign: float) -> tuple[float, float]:
        there = {name: x + sign * step * direction[name] if name in direction else x for name, x in inputs[i].items()}
        result = run(subject, (*inputs[:i], there, *inputs[i + 1 :]))
        return weighed(result).item(), sum(x.abs().sum().item() for x in reals(result).values())

    (ahead, size), (behind, _) = at(1.0), at(-1.0)
    return (ahead - behind) / (2 * step), 1e-14 * (1 + size) / step


def check_slopes(subject: MapSubject, inputs: Trees, i: int) -> None:
    """Compare the gradient by an argument with differences, along a random direction."""
    generator = seeded(i)
    _, grads = pull(subject, inputs, (i,))
    direction = change(reals(inputs[i]), lambda x: torch.randn(x.shape, generator=generator, dtype=torch.float64))
    said = sum((grads[i][name] * d).sum().item() for name, d in direction.items())
    size = max((g.abs().max().item() for g in grads[i].values() if g.numel()), default=0.0)
    seen: list[float] = []
    for step in STEPS:
        slope, room = _slope(subject, inputs, i, direction, step)
        if abs(slope - said) <= 1e-5 * (1 + size) + room:
            return
        seen.append(slope)
    raise Broken(
        f"along a random direction of {subject.arguments[i]} the result rises by {seen[0]:.9g}, and the gradient says "
        f"{said:.9g}\n{told(subject, inputs)}"
    )


def _has_own(subject: MapSubject) -> bool:
    return bool(reals(subject.parameters))


@asked(_has_own)
def gradcheck(subject: MapSubject) -> None:
    """The gradient by the parameters is the derivative of the result, in float64.

    Broken by: a part held constant by detach(), a reversed or scaled gradient, a straight-through estimate, a custom
    backward with a slip. If it is meant, say so in expected_failed_checks.
    """
    for_inputs(subject, lambda inputs: check_slopes(subject, inputs, subject.own), "generic", rows=(2, 4))


def _learns_through(subject: MapSubject) -> bool | None:
    given = reals(subject.start[subject.given])
    return subject.claims.get("learns through", True) if given else False


@asked(_learns_through)
def gradcheck_input(subject: MapSubject) -> None:
    """The gradient by what is handed in (feature, base, source) is the derivative of the result, in float64.

    Broken by: what breaks gradcheck.
    """
    for_inputs(subject, lambda inputs: check_slopes(subject, inputs, subject.given), "generic", rows=(2, 4))


@asked(lambda s: s.reference is not None)
def reference(subject: MapSubject) -> None:
    """The result is that of the slow formula.

    Broken by: a factor dropped, a wrong axis, a matrix not transposed, an activation left out.
    """

    def test(inputs: Trees) -> None:
        here, there = run(subject, inputs), run(subject, inputs, subject.reference)
        if name := unlike(here, there):
            raise Broken(
                f"the map and its reference give this and that\n{told(subject, inputs, **two(name, here, there))}"
            )

    for_inputs(subject, test, "moderate", "generic")


@asked(lambda s: s.reference is not None)
def reference_gradient(subject: MapSubject) -> None:
    """The gradient is that of the slow formula, where that has one.

    Broken by: a factor on the gradient alone, something held constant that is not in the formula, or the other way.
    """

    def test(inputs: Trees) -> None:
        positions = tuple(i for i in (subject.own, subject.given if _learns_through(subject) else -1) if i >= 0)
        try:
            _, wanted = pull(subject, inputs, positions, subject.reference)
        except Broken:
            return  # the formula has no gradient here
        _, found = pull(subject, inputs, positions)
        for i, tree in wanted.items():
            if not any(bool(x.any()) for x in tree.values()):
                continue
            if name := unlike(found[i], tree, 1e-8):
                pair = told(subject, inputs, **two(name, found[i], tree))
                raise Broken(f"the gradients of {place(subject, i, name)} are this and that\n{pair}")

    for_inputs(subject, test, "generic", rows=(2, 5))


@asked(_has_own)
def trains(subject: MapSubject) -> None:
    """Every parameter learns: it has a gradient at the start, or after one step of descent on a quadratic.

    Broken by: two factors that both start at zero, a parameter that is never used, detach(), .data or no_grad, a
    rounding or a comparison, a module kept in a closure that is used in the parameters' place.
    """
    idle = set(reals(subject.parameters))
    for seed in range(3):
        inputs = subject.sample(seed, ROWS, True)
        for _ in range(2):
            inputs, grads = _step(subject, inputs)
            idle -= {name for name, grad in grads.items() if bool((grad != 0).any())}
    if idle:
        raise Broken(f"no gradient at the start, nor one step later: {', '.join(sorted(idle))}")


@asked(_has_own)
def units_part(subject: MapSubject) -> None:
    """Units that start alike do not stay alike: a few steps of descent on a quadratic tell them apart.

    Broken by: two layers that both start constant, one row repeated: a hundred units then count as one.
    """
    begin = inputs = subject.sample(0, ROWS, True)
    for _ in range(3):
        inputs, _ = _step(subject, inputs)
    for name, x in reals(inputs[subject.own]).items():
        way = (x - begin[subject.own][name]).abs().max().item() if x.numel() else 0.0
        for axis in range(x.ndim):
            alike = x.shape[axis] > 1 and (x - x.narrow(axis, 0, 1)).abs().max().item() <= 1e-9 * way
            if alike and way > 0:
                raise Broken(f"{name!r} moves by {way:.3g}, and all that it has along axis {axis} stays equal")


def _step(subject: MapSubject, inputs: Trees) -> tuple[Trees, Tensors]:
    """One step of descent, and its gradient."""
    grads = _descent(subject, inputs)
    size = max([1.0, *(grad.abs().max().item() for grad in grads.values() if grad.numel())])
    own = {k: x - 0.1 / size * grads[k] if k in grads else x for k, x in inputs[subject.own].items()}
    return (*inputs[: subject.own], own, *inputs[subject.own + 1 :]), grads


def _descent(subject: MapSubject, inputs: Trees) -> Tensors:
    """The gradient of |result - target|^2 / 2 by the own parameters, for a random target."""

    def distance(*trees: Tensors) -> Tensors:
        result = subject.function(*trees)
        generator = seeded(3)
        far = {
            name: torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
            for name, x in sorted(reals(result).items())
        }
        # `pull` weighs with one number, which is not 0.
        return {"distance": sum((((result[k] - t) ** 2).sum() for k, t in far.items()), torch.zeros(()))}

    return pull(subject, inputs, (subject.own,), distance)[1][subject.own]


@asked(_has_own)
def every_row(subject: MapSubject) -> None:
    """No row or column of a parameter is left without a gradient whatever the arguments are.

    Broken by: a slice or an index that leaves a part out, a broadcast from the first row, a loop that ends too early.
    """
    reached: dict[str, Tensor] = {}
    for seed in range(max(6, subject.examples)):
        inputs = subject.sample(seed, ROWS, False)
        if seed % 2:  # other signs too, so that units which sleep at the start wake
            own = spread(inputs[subject.own], seed)
            inputs = (*inputs[: subject.own], own, *inputs[subject.own + 1 :])
        for name, grad in pull(subject, inputs, (subject.own,))[1][subject.own].items():
            reached[name] = reached.get(name, torch.zeros_like(grad, dtype=torch.bool)) | (grad != 0)
    for name, there in reached.items():
        if not bool(there.any()):
            continue  # told by `trains`
        # A diagonal or a triangle may be idle by design.
        for axis in range(there.ndim):
            idle = ~there.movedim(axis, 0).reshape(there.shape[axis], -1).any(1)
            if bool(idle.any()):
                which = ", ".join(map(str, idle.nonzero().flatten().tolist()[:8]))
                raise Broken(f"in {name!r} {tuple(there.shape)}, along axis {axis}, these have no gradient: {which}")


@asked(_has_own)
def changes_result(subject: MapSubject) -> None:
    """Every parameter that has a gradient counts: where it changes, the result does.

    Broken by: x - x.detach() where x was to be added, a straight-through gradient past a threshold that nothing
    crosses.
    """
    silent: set[str] = set()
    for seed in range(4):
        inputs = subject.sample(seed, ROWS, False)
        own = inputs[subject.own]
        here, grads = pull(subject, inputs, (subject.own,))
        # A smaller one is rounding: a shift that a softmax or a norm takes out again is no slip.
        if seed == 0:
            silent = {name for name, grad in grads[subject.own].items() if bool((grad.abs() > 1e-9).any())}
        for name in sorted(silent):
            for moved in (own[name] * 1.5 + 0.25, -1 - own[name]):  # past a threshold, wherever that is
                there = run(subject, (*inputs[: subject.own], {**own, name: moved}, *inputs[subject.own + 1 :]))
                if unlike(here, there, 1e-12):
                    silent.discard(name)
    if silent:
        raise Broken(f"the result is the same whatever these are: {', '.join(sorted(silent))}")


@asked()
def finite(subject: MapSubject) -> None:
    """The result and its gradients are finite on plain arguments, at the start and later.

    Broken by: a logarithm or root of zero, a division by a count or a norm that can be zero.
    """
    for_inputs(subject, lambda inputs: check_finite(subject, inputs), "moderate", "generic", "start")


def check_finite(subject: MapSubject, inputs: Trees) -> None:
    """Want the result, and every gradient, to be finite."""
    positions = tuple(i for i in range(len(inputs)) if i in (subject.own, subject.given))
    result, grads = pull(subject, inputs, positions)
    for x in result.values():
        if not bool(x.isfinite().all()):
            raise Broken(f"the result is not finite\n{told(subject, inputs, result=x)}")
    for i, tree in grads.items():
        for name, grad in tree.items():
            if not bool(grad.isfinite().all()):
                what = f"the gradient of {place(subject, i, name)} is not finite: {text(grad)}"
                raise Broken(f"{what}\n{told(subject, inputs)}")


OWN = (trains, units_part, every_row, changes_result)
LAWS = (finite, gradcheck, gradcheck_input, reference, reference_gradient)
