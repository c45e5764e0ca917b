"""A loss with what is known of its arguments: how laws draw them, call it, and say what they found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from ttransfer.testing._arguments import LABELS, Argument, words
from ttransfer.testing._law import Broken
from ttransfer.testing._tags import Tags
from ttransfer.testing._text import text
from ttransfer.testing.strategies import features, generic, grid, labels, logits, masks, probabilities

__all__ = ["Inputs", "Subject", "drawn", "for_all", "show"]

Inputs = tuple[Any, ...]


class Subject(NamedTuple):
    """What the laws of losses are given.

    Attributes:
        name: of the loss.
        fn: the loss.
        arguments: what it takes.
        tags: what is claimed of it; `detaches`, `coupled` and `row_symmetric` are filled in.
        given: a strategy for tuples of arguments, in place of the families.
        reference: a slow formula of the same.
        limits: name -> (loss) -> (value, what it should be).
        examples: how many inputs a law draws.
        same_rows: whether both domains must have as many rows.
        rows: the one number of rows that it takes, where that is so.
    """

    name: str
    fn: Callable[..., Any]
    arguments: tuple[Argument, ...]
    tags: Tags
    given: SearchStrategy[Any] | None = None
    reference: Callable[..., Any] | None = None
    limits: Mapping[str, Callable[[Any], tuple[Any, Any]]] = {}
    examples: int = 20
    same_rows: bool = False
    rows: int | None = None

    @property
    def fewest(self) -> int:
        """The fewest rows that it is defined for."""
        return self.tags.min_batch or 1

    def sides(self) -> tuple[tuple[int, int], ...]:
        """The positions of what stands on either side: (student, teacher), or (source, target) with their labels.

        Empty where something of one side has no counterpart on the other, so that the two cannot be made equal.
        Where no name says more, two arguments of one kind and width are two sides.
        """
        for one, other in (("student", "teacher"), ("source", "target")):
            left, right = ([i for i, a in enumerate(self.arguments) if a.role == role] for role in (one, other))
            if left and right:
                return self._matched(left, right)
        real = [i for i in self.floats() if self.wants(i) and self.arguments[i].has_rows]
        return self._matched(real[:1], real[1:]) if len(real) == 2 else ()

    def _matched(self, left: list[int], right: list[int]) -> tuple[tuple[int, int], ...]:
        kinds = [[(self.arguments[i].kind, self.arguments[i].shape[1:]) for i in side] for side in (left, right)]
        alone = [a for i, a in enumerate(self.arguments) if a.rows and i not in (*left, *right)]
        if kinds[0] != kinds[1] or (alone and any(a.rows == "m" for a in self.arguments)):
            return ()
        return tuple(zip(left, right, strict=True))

    def equal(self, inputs: Inputs) -> Inputs:
        """The inputs with the second side also in the place of the first."""
        taken = dict(self.sides())
        return tuple(_copy(inputs[taken[i]]) if i in taken else x for i, x in enumerate(inputs))

    def swapped(self, inputs: Inputs) -> Inputs:
        """The inputs with the sides exchanged."""
        taken = {**dict(self.sides()), **{b: a for a, b in self.sides()}}
        return tuple(inputs[taken[i]] if i in taken else x for i, x in enumerate(inputs))

    def floats(self) -> list[int]:
        """The positions of what is drawn as real numbers, or given as such."""
        return [i for i, a in enumerate(self.arguments) if a.floating]

    def trained(self) -> list[int]:
        """The positions of what may get a gradient: logits and features that are not said to be detached."""
        detached = self.tags.detaches or ()
        return [i for i in self.floats() if self.arguments[i].name not in detached and self.wants(i)]

    def wants(self, i: int) -> bool:
        """Whether an argument is of a kind that losses are differentiated by."""
        return self.arguments[i].kind in ("logits", "features", "probabilities")

    def call(self, inputs: Inputs) -> Tensor:
        """Call the loss on copies.

        Raises:
            Broken: if it raises, or returns no scalar tensor.
        """
        try:
            value = self.fn(*map(_copy, inputs))
        except Exception as error:
            raise Broken(f"it raised {type(error).__name__}: {_first(error)}\n{show(self, inputs)}") from error
        if not isinstance(value, Tensor) or value.ndim:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise Broken(f"it returned {got}, no 0-d tensor\n{show(self, inputs)}")
        return value

    def value(self, inputs: Inputs) -> float:
        """Call the loss; return its value."""
        return self.call(inputs).item()

    def gradients(self, inputs: Inputs) -> tuple[Tensor, dict[int, Tensor]]:
        """Call the loss and differentiate it by everything that is real; what is not reached gets zeros."""
        leaves = {i: inputs[i].detach().clone().requires_grad_() for i in self.floats()}
        # A part may write on what it gets, and a leaf cannot be written on.
        passed = tuple(leaves[i].clone() if i in leaves else x for i, x in enumerate(inputs))
        value = self.call(passed) if not leaves else self._called(passed, inputs)
        if not value.requires_grad:
            return value, {i: torch.zeros_like(x) for i, x in leaves.items()}
        try:
            grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        except RuntimeError as error:
            raise Broken(
                f"its backward raised {type(error).__name__}: {_first(error)}\n{show(self, inputs)}"
            ) from error
        return value.detach(), dict(zip(leaves, grads, strict=True))

    def _called(self, passed: Inputs, inputs: Inputs) -> Tensor:
        try:
            value = self.fn(*passed)
        except Exception as error:
            raise Broken(f"it raised {type(error).__name__}: {_first(error)}\n{show(self, inputs)}") from error
        if not isinstance(value, Tensor) or value.ndim:
            raise Broken(f"it returned no 0-d tensor\n{show(self, inputs)}")
        return value


def _copy(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _first(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]


def show(subject: Subject, inputs: Inputs, **more: Any) -> str:
    """Write inputs, and what was made of them, so that a person can type them in."""
    names = [a.name for a in subject.arguments]
    lines = [f"{name} = {text(x)}" for name, x in zip(names, inputs, strict=True)]
    return "\n".join(lines + [f"{key.replace('_', ' ')} = {text(x)}" for key, x in more.items()])


@st.composite
def drawn(
    draw: DrawFn, subject: Subject, family: str = "moderate", *, rows: tuple[int, int] | None = None, least: int = 1
) -> Inputs:
    """Draw a loss's arguments.

    Args:
        draw: Hypothesis's.
        subject: the loss.
        family: "moderate", "generic", or "extreme" (confident, tied, collapsed, zero, one class).
        rows: the fewest and the most rows.
        least: the fewest classes and features.
    """
    if subject.given is not None:
        inputs = draw(subject.given)
        return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    low, high = rows or (subject.fewest, max(5, subject.fewest + 2))
    low, high = (subject.rows, subject.rows) if subject.rows else (low, high)
    n = draw(st.integers(low, high))
    m = n if subject.same_rows else draw(st.integers(low, high))
    sizes = {"n": n, "m": m, "c": draw(st.integers(max(2, least), 4)), "d": draw(st.integers(max(1, least), 4))}
    classes = _classes(subject, sizes)
    how = draw(st.sampled_from(["confident", "tied", "degenerate", "duplicated"])) if family == "extreme" else family
    return tuple(draw(_argument(a, sizes, classes, how, subject.tags)) for a in subject.arguments)


def _classes(subject: Subject, sizes: Mapping[str, int]) -> int:
    for a in subject.arguments:
        if a.kind in ("logits", "probabilities") and len(a.shape) > 1:
            return _size(a.shape[1], sizes)
    seen = [int(a.value.max()) + 1 for a in subject.arguments if a.kind == "labels" and isinstance(a.value, Tensor)]
    return max([2, *seen]) if seen else sizes["c"]


def _size(letter: int | str, sizes: Mapping[str, int]) -> int:
    return sizes[letter] if isinstance(letter, str) else letter


def _argument(a: Argument, sizes: Mapping[str, int], classes: int, family: str, tags: Tags) -> SearchStrategy[Any]:
    shape = tuple(_size(x, sizes) for x in a.shape)
    if a.kind == "fixed":
        value = a.value
        return st.just(value.double() if isinstance(value, Tensor) and value.is_floating_point() else value)
    if a.kind == "labels":
        kind = "one class" if family == "degenerate" else "balanced"
        own = classes if words(a.name) & LABELS or a.value is None else max(2, int(a.value.max()) + 1)
        return labels(shape, classes=own, family=kind, ignore_index=tags.ignore_index)
    if a.kind == "mask":
        bits = masks(shape)  # something is left of every row
        return bits.map(torch.Tensor.double) if isinstance(a.value, Tensor) and a.value.is_floating_point() else bits
    if a.kind == "logits":
        return logits(shape, family=family if family in ("generic", "confident", "tied", "degenerate") else "moderate")
    if a.kind == "probabilities":
        return probabilities(shape, family="generic")
    if a.kind == "weights":
        return grid(shape, low=0.25, high=2.0)
    known = {"degenerate": "zero", "confident": "large", "tied": "collapsed", "duplicated": "duplicated"}
    if not a.has_rows:
        return generic(shape)
    return features(shape, family=known.get(family, family))


def for_all(strategy: SearchStrategy[Any], test: Callable[[Any], None], *, examples: int = 20) -> None:
    """Run a test on many drawn inputs, the same ones each time, and let its failure be the smallest.

    Raises:
        Broken: as the test raised it for the smallest input found.
    """

    def once(inputs: Any) -> None:
        test(inputs)

    quiet = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=cast("list[HealthCheck]", list(HealthCheck)),
        print_blob=False,
    )
    try:
        quiet(given(strategy)(once))()
    except Broken as broken:
        raise Broken(*broken.args) from None  # without Hypothesis's notes
