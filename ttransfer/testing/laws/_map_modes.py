"""Laws on modes: one graph, many at once, and both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ttransfer.testing._law import Broken
from ttransfer.testing.laws._compiling import compiling
from ttransfer.testing.laws._map_pure import two
from ttransfer.testing.laws._map_subject import MapSubject, Trees, asked, place, told
from ttransfer.testing.laws._map_trees import Tensors, clones, reals, seeded, unlike

__all__ = ["LAWS"]

ROWS = 4
Run = Callable[[Callable[..., Any]], Callable[..., Any]]


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """One graph, without code generation."""
    return torch.compile(fn, backend="aot_eager", fullgraph=True, dynamic=False)


def _trained(subject: MapSubject) -> tuple[int, ...]:
    found = [i for i in (subject.own, subject.given) if i >= 0]
    return tuple(dict.fromkeys(found))


def _with_slopes(subject: MapSubject, inputs: Trees) -> Callable[..., tuple[Tensors, Any]]:
    """The map with its gradients: (real tensors to differentiate by, all tensors) -> (result, gradients)."""
    positions = _trained(subject)
    shapes = subject.function(*map(clones, inputs))
    # Made outside, because drawing them is no part of the map.
    weights = {
        name: torch.randn(x.shape, generator=seeded(i), dtype=torch.float64).to(x.dtype)
        for i, (name, x) in enumerate(reals(shapes).items())
    }

    def value(leaves: tuple[Tensors, ...], trees: Trees) -> tuple[Tensor, Tensors]:
        at = dict(zip(positions, leaves, strict=True))
        result = subject.function(*({**tree, **at.get(i, {})} for i, tree in enumerate(trees)))
        total = sum(((weight * result[name]).sum() for name, weight in weights.items()), torch.zeros(()))
        return total, result

    def both(leaves: tuple[Tensors, ...], trees: Trees) -> tuple[Tensors, Any]:
        if not any(leaves) or not weights:
            return value(leaves, trees)[1], ()
        return torch.func.grad(value, has_aux=True)(leaves, trees)[::-1]

    return both


def _leaves(subject: MapSubject, inputs: Trees) -> tuple[Tensors, ...]:
    return tuple(reals(inputs[i]) for i in _trained(subject))


def _why(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:400]}"


def _compare(subject: MapSubject, inputs: Trees, found: Any, wanted: Any, what: str) -> None:
    """Want two pairs of result and gradients to be the same."""
    if name := unlike(found[0], wanted[0]):
        raise Broken(f"{what} the result is another\n{told(subject, inputs, **two(name, found[0], wanted[0]))}")
    for i, here, there in zip(_trained(subject), found[1], wanted[1], strict=False):
        if name := unlike(here, there):
            pair = two(name, here, there)
            where = place(subject, i, name)
            raise Broken(f"{what} the gradient of {where} is another\n{told(subject, inputs, **pair)}")


@asked(lambda s: s.claims.get("one graph", True))
def one_graph(subject: MapSubject) -> None:
    """The map compiles to one graph, with the same result and gradients.

    Broken by: .item(), a Python branch on a value, indexing by a mask, nonzero, NumPy, print, try.
    """
    inputs = subject.sample(0, ROWS, False)
    both = _with_slopes(subject, inputs)
    wanted = both(_leaves(subject, inputs), inputs)
    with compiling():
        try:
            found = compiled(both)(_leaves(subject, inputs), inputs)
        except Exception as error:
            raise Broken(f"it does not compile: {_why(error)}") from error
    _compare(subject, inputs, found, wanted, "compiled")


def _many(subject: MapSubject, run: Run) -> None:
    """Compare two at once with one after the other."""
    one, other = subject.sample(0, ROWS, False), subject.sample(1, ROWS, False)
    axes = tuple(axis if tree else None for axis, tree in zip(subject.axes, one, strict=True))
    other = tuple(b if axis == 0 else a for a, b, axis in zip(one, other, axes, strict=True))
    both = _with_slopes(subject, one)
    wanted = [both(_leaves(subject, inputs), inputs) for inputs in (one, other)]
    stacked = tuple(
        {name: torch.stack([x, b[name]]) for name, x in a.items()} if axis == 0 else a
        for a, b, axis in zip(one, other, axes, strict=True)
    )
    leaves = tuple(axes[i] for i in _trained(subject))
    try:
        results, slopes = run(torch.vmap(both, (leaves, axes)))(_leaves(subject, stacked), stacked)
    except Exception as error:
        raise Broken(f"it raised {_why(error)}\n{told(subject, one)}") from error
    for k, inputs in enumerate((one, other)):
        found = [{name: x[k] for name, x in tree.items()} for tree in (results, *slopes)]
        _compare(subject, inputs, (found[0], found[1:]), wanted[k], "beside another")


def _stacks(subject: MapSubject) -> bool:
    return any(axis == 0 and tree for axis, tree in zip(subject.axes, subject.start, strict=True))


@asked(_stacks)
def vmap(subject: MapSubject) -> None:
    """Many maps may be taken at once, as the members of an ensemble are: vmap and grad agree with one by one.

    Broken by: .item(), in-place writes, a custom autograd function without generate_vmap_rule, a Python branch on a
    value.
    """
    _many(subject, lambda fn: fn)


@asked(lambda s: s.claims.get("one graph", True) if _stacks(s) else False)
def compiled_vmap(subject: MapSubject) -> None:
    """Many at once compile to one graph as well.

    Broken by: what breaks one-graph or vmap.
    """
    with compiling():
        _many(subject, compiled)


LAWS = (one_graph, vmap, compiled_vmap)
