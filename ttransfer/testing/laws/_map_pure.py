"""Laws on maps as functions: of their arguments alone, whatever the order, the strides and the defaults."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ttransfer.testing._law import Broken
from ttransfer.testing._subject import for_all
from ttransfer.testing.laws._map_subject import MapSubject, Trees, asked, first_line, place, run, told
from ttransfer.testing.laws._map_trees import Tensors, change, clones, equal, gap, seeded, turned, unlike

__all__ = ["LAWS", "close_to_double"]


def for_inputs(
    subject: MapSubject, test: Callable[[Trees], None], *families: str, rows: tuple[int, int] = (1, 5)
) -> None:
    """Run a test on drawn arguments."""
    examples = max(3, subject.examples // max(1, len(families)))
    for family in families or ("moderate",):
        for_all(subject.drawn(family, rows), lambda drawn: test(drawn[1]), examples=examples)


def two(name: str, here: Tensors, there: Tensors) -> dict[str, Tensor]:
    """Both values under a name, for a message."""
    return {key: tree[name] for key, tree in (("this", here), ("that", there)) if name in tree}


@asked()
def deterministic(subject: MapSubject) -> None:
    """The result is a function of the arguments: the same call gives the same bits, and nothing is remembered.

    Broken by: dropout or noise from the global generator, a running average, a counter or a cache kept between calls,
    something that init leaves for apply outside the parameters.
    """
    previous: list[Trees] = []

    def test(inputs: Trees) -> None:
        _start(subject, 0)
        state = torch.get_rng_state()
        once = run(subject, inputs)
        if not torch.equal(state, torch.get_rng_state()):
            raise Broken(f"it draws from the global generator\n{told(subject, inputs)}")
        for other in previous[-1:]:
            run(subject, other)
        _start(subject, 1)
        twice = run(subject, inputs)
        previous.append(inputs)
        if not equal(once, twice):
            name = unlike(once, twice, 0.0) or ""
            raise Broken(f"two calls gave this and that\n{told(subject, inputs, **two(name, once, twice))}")

    for_inputs(subject, test)


def _start(subject: MapSubject, wider: int) -> None:
    """Make parameters, of these shapes or of wider ones where it can."""
    example, generator = subject.example, seeded(5)
    if subject.own < 0:
        return
    try:
        if isinstance(example, Tensor):
            subject.part.init(generator, torch.empty([n + wider for n in example.shape], device="meta"))
        else:
            shapes = {name: [n + wider for n in x.shape] for name, x in example.items()}
            subject.part.init(generator, {k: torch.zeros(shape, dtype=example[k].dtype) for k, shape in shapes.items()})
    except Exception:  # it need not take others
        return


@asked()
def inputs_untouched(subject: MapSubject) -> None:
    """The arguments are left as they were, tensors and dicts; the result is a dict of its own.

    Broken by: an operation in place (x += ..., a method that ends in _), pop() or update() on a dict that was given,
    the given dict handed back.
    """

    def test(inputs: Trees) -> None:
        passed = tuple(map(clones, inputs))
        with torch.no_grad():
            result = subject.function(*passed)
        for i, (before, after) in enumerate(zip(inputs, passed, strict=True)):
            argument = subject.arguments[i]
            if list(before) != list(after):
                raise Broken(f"it changed the names in {argument}: now {', '.join(after)}\n{told(subject, inputs)}")
            if not equal(before, after):
                name = unlike(before, after, 0.0) or ""
                raise Broken(f"it changed {place(subject, i, name)}\n{told(subject, inputs, afterwards=after[name])}")
            if result is after:
                raise Broken(f"it returned the very dict that it got as {argument}")

    for_inputs(subject, test)


@asked()
def names_decide(subject: MapSubject) -> None:
    """The order of names in a dict does not matter; in a pool, that of the names in each checkpoint.

    Broken by: zip() over the values of two dicts, the first or the last entry of one. A checkpoint may come back in
    another order.
    """

    def test(inputs: Trees) -> None:
        here = run(subject, inputs)
        for i, tree in enumerate(inputs):
            there = run(subject, (*inputs[:i], turned(tree), *inputs[i + 1 :]))
            if name := unlike(here, there):
                what = f"with the names of {subject.arguments[i]} in their order and the other way round it gives"
                raise Broken(f"{what} this and that\n{told(subject, inputs, **two(name, here, there))}")

    for_inputs(subject, test, "generic")


def close_to_double(subject: MapSubject, few: Trees, room: float, what: str) -> None:
    """Compare the result for arguments of few bits with that for the same numbers in float64."""
    here = run(subject, few)
    there = run(subject, tuple(change(tree, Tensor.double) for tree in few))
    for name, x in here.items():
        if not bool(x.isfinite().all()) and name in there and bool(there[name].isfinite().all()):
            raise Broken(f"in {what} it is not finite\n{told(subject, few, **{what: x})}")
    if name := unlike(change(here, Tensor.double), change(there, Tensor.double), room):
        pair = two(name, here, there)
        values = {what: pair.get("this"), "float64": pair.get("that")}
        raise Broken(f"in {what} it is another than in float64\n{told(subject, few, **values)}")


@asked()
def float32(subject: MapSubject) -> None:
    """In float32 the result is within a thousandth of what it is in float64.

    Broken by: a difference of large numbers, an eps that counts, a constant of half precision.
    """

    def test(inputs: Trees) -> None:
        close_to_double(subject, tuple(change(tree, Tensor.float) for tree in inputs), 1e-3, "float32")

    for_inputs(subject, test, "generic")


@asked()
def strides(subject: MapSubject) -> None:
    """How what is given lies in memory does not matter.

    Broken by: .view() where .reshape() is meant.
    """

    def turned(x: Tensor) -> Tensor:
        return x.movedim(0, -1).contiguous().movedim(-1, 0) if x.ndim > 1 else x

    def test(inputs: Trees) -> None:
        here = run(subject, inputs)
        i = subject.given
        other = (*map(clones, inputs[:i]), change(inputs[i], turned), *map(clones, inputs[i + 1 :]))
        try:
            there = subject.function(*other)  # not by `run`, whose copies might be put in order
        except Exception as error:
            what = f"for tensors that are not contiguous it raised {first_line(error)}"
            raise Broken(f"{what}\n{told(subject, inputs)}") from error
        if name := unlike(here, there):
            raise Broken(f"contiguous and not it is\n{told(subject, inputs, **two(name, here, there))}")

    for_inputs(subject, test, "generic", rows=(2, 5))


@asked()
def defaults(subject: MapSubject) -> None:
    """Whatever a map makes itself is on its arguments' device and of their dtype.

    Broken by: torch.ones(n), torch.eye(n), torch.tensor(x) without device= and dtype=; it fails on a GPU, or counts
    in float32 what came in float64.
    """

    def test(inputs: Trees) -> None:
        here = run(subject, inputs)
        copies, usual = tuple(map(clones, inputs)), torch.get_default_dtype()
        try:
            with torch.device("meta"):
                there = subject.function(*copies)
        except Exception as error:
            raise Broken(
                f"with another default device it raised {first_line(error)}\n{told(subject, inputs)}"
            ) from error
        if any(x.is_meta for x in there.values()):
            raise Broken(f"its result is on the default device, not on its arguments'\n{told(subject, inputs)}")
        single = tuple(change(tree, Tensor.float) for tree in inputs)
        few = run(subject, single)
        try:
            torch.set_default_dtype(torch.float64)
            many = run(subject, single)
        finally:
            torch.set_default_dtype(usual)
        for name, x in few.items():
            if name not in many or x.dtype != many[name].dtype or gap(x, many[name]) > 1e-9:
                what = "in float32, with a default dtype of float32 and of float64, it is"
                raise Broken(f"{what}\n{told(subject, inputs, **two(name, few, many))}")
        if name := unlike(here, there):
            raise Broken(f"with another default device it is\n{told(subject, inputs, **two(name, here, there))}")

    for_inputs(subject, test, "generic", rows=(2, 4))


LAWS = (deterministic, inputs_untouched, names_decide, float32, strides, defaults)
