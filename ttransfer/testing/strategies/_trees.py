"""Parameters: flat dicts with dotted names, and nested trees."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from ttransfer.testing.strategies._check import bounds_of, real_dtypes, shape_of
from ttransfer.testing.strategies._values import integers

__all__ = ["Leaf", "Pair", "letters", "names_and_leaves", "params", "trees"]

SHAPES = ((), (1,), (2,), (2, 3))
Nest = list[Any]
"""Numbers of leaves, and lists of the same kind."""


class Leaf(NamedTuple):
    """What a tensor will be."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Pair(NamedTuple):
    """A named tuple, to stand in trees as a `State` does.

    Attributes:
        first: a tensor or a tree.
        second: a tensor or a tree.

    Example:
        >>> Pair(torch.zeros(1), [torch.ones(1)])
        Pair(first=tensor([0.]), second=[tensor([1.])])
    """

    first: Any
    second: Any


def params(
    *,
    leaves: tuple[int, int] = (1, 4),
    shapes: Sequence[Sequence[int]] = SHAPES,
    dtypes: Sequence[torch.dtype] = (torch.float64,),
) -> SearchStrategy[dict[str, Tensor]]:
    """Draw parameters as a flat dict: dotted names -> tensors of small numbers.

    The names are as a module's: no name goes on where another ends, "a" and "a.b" are not both there. Numbers are
    multiples of a quarter within ±2, in whole dtypes whole, in unsigned ones not negative.

    Args:
        leaves: the fewest and the most tensors; 0 for a dict of none.
        shapes: which are drawn, the simplest first; (0,) is for tensors of nothing.
        dtypes: which are drawn, the simplest first.

    Returns:
        A strategy; it shrinks to {"a": a 0-d zero}.

    Raises:
        TransferError: for what is no range, no shapes, or no dtypes of real numbers.

    Example:
        >>> from hypothesis import find
        >>> find(params(), lambda p: len(p) == 2)
        {'a': tensor(0., dtype=torch.float64), 'b': tensor(0., dtype=torch.float64)}
        >>> find(params(), lambda p: any("." in name for name in p))
        {'a.a': tensor(0., dtype=torch.float64)}
    """
    return _items(*_checked("params", leaves, shapes, dtypes)).map(_flat)


def trees(
    *,
    leaves: tuple[int, int] = (1, 4),
    shapes: Sequence[Sequence[int]] = SHAPES,
    dtypes: Sequence[torch.dtype] = (torch.float64,),
) -> SearchStrategy[Any]:
    """Draw nested trees of tensors: dicts, lists, tuples, and named tuples (of first and second).

    Args:
        leaves: the fewest and the most tensors; 0 for a tree of none.
        shapes: which are drawn, the simplest first; (0,) is for tensors of nothing.
        dtypes: which are drawn, the simplest first.

    Returns:
        A strategy; it shrinks to {"a": a 0-d zero}.

    Raises:
        TransferError: for what is no range, no shapes, or no dtypes of real numbers.

    Example:
        >>> from hypothesis import find
        >>> find(trees(shapes=[(1,)]), lambda tree: isinstance(tree.get("a"), list))
        {'a': [tensor([0.], dtype=torch.float64)]}
    """
    return _items(*_checked("trees", leaves, shapes, dtypes)).map(_built)


Checked = tuple[tuple[int, int], tuple[tuple[int, ...], ...], tuple[torch.dtype, ...]]


def _checked(what: str, leaves: Any, shapes: Any, dtypes: Any) -> Checked:
    given = tuple(shapes) if isinstance(shapes, (tuple, list)) and shapes else (None,)
    wanted = "each one of whole numbers, in a list"
    return (
        bounds_of(what, "leaves", leaves, least=0),
        tuple(shape_of(what, shape, wanted=wanted) for shape in given),
        real_dtypes(what, dtypes),
    )


def _flat(items: list[_Item]) -> dict[str, Tensor]:
    return {name: _tensor(item) for name, item in _named(_nest(items), items).items()}


def _built(items: list[_Item]) -> Any:
    def built(node: Nest | int, kind: str = "dict") -> Any:
        if isinstance(node, int):
            return _tensor(items[node])
        children = [built(child, items[_first(child)].kind) for child in node]
        if kind == "dict":
            return dict(zip(letters(), children, strict=False))
        if kind == "pair" and len(children) == 2:
            return Pair(*children)
        return children if kind == "list" else tuple(children)

    return built(_nest(items))


def letters() -> Iterator[str]:
    """Yield a, b, ..., z, aa, ab, ..."""
    for length in itertools.count(1):
        for letter in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letter)


def names_and_leaves(
    leaves: tuple[int, int], shapes: Sequence[tuple[int, ...]], dtypes: Sequence[torch.dtype]
) -> SearchStrategy[dict[str, Leaf]]:
    """Draw the names of parameters and what they are, without their numbers."""

    def named(items: list[_Item]) -> dict[str, Leaf]:
        return {name: item.leaf for name, item in _named(_nest(items), items).items()}

    return _items(leaves, shapes, dtypes, filled=False).map(named)


class _Item(NamedTuple):
    """One leaf, in which group it lies, and of what kind that group is if it is the first there.

    All that is drawn for a leaf is drawn together: then it can be left out together.
    """

    place: tuple[int, ...]
    kind: str
    leaf: Leaf
    numbers: Tensor


_PLACE = st.sampled_from([(), (0,), (1,), (0, 0), (0, 1)])
_KIND = st.sampled_from(["dict", "list", "tuple", "pair"])


def _items(
    leaves: tuple[int, int],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[torch.dtype],
    *,
    filled: bool = True,
) -> SearchStrategy[list[_Item]]:
    item = _item(st.sampled_from(shapes), st.sampled_from(dtypes), filled)
    return st.lists(item, min_size=leaves[0], max_size=leaves[1])


@st.composite
def _item(
    draw: DrawFn, shapes: SearchStrategy[tuple[int, ...]], dtypes: SearchStrategy[torch.dtype], filled: bool
) -> _Item:
    place = draw(_PLACE)
    kind = draw(_KIND) if filled and place else "dict"
    leaf = Leaf(draw(shapes), draw(dtypes))
    return _Item(place, kind, leaf, integers(draw, leaf.shape, -8, 8) if filled else torch.empty(0))


def _nest(items: Sequence[_Item]) -> Nest:
    """Put the numbers of the items into groups."""
    root: Nest = []
    groups: dict[tuple[int, ...], Nest] = {(): root}
    for number, item in enumerate(items):
        for depth in range(len(item.place)):
            if item.place[: depth + 1] not in groups:
                groups[item.place[: depth + 1]] = inner = []
                groups[item.place[:depth]].append(inner)
        groups[item.place].append(number)
    return root


def _first(node: Nest | int) -> int:
    return node if isinstance(node, int) else _first(node[0])


def _named(node: Nest | int, items: Sequence[_Item], at: str = "") -> dict[str, _Item]:
    if isinstance(node, int):
        return {at: items[node]}
    found: dict[str, _Item] = {}
    for letter, child in zip(letters(), node, strict=False):
        found.update(_named(child, items, f"{at}.{letter}" if at else letter))
    return found


def _tensor(item: _Item) -> Tensor:
    dtype = item.leaf.dtype
    if dtype.is_floating_point:
        return (item.numbers.double() / 4).to(dtype)
    return (item.numbers if dtype.is_signed else item.numbers.abs()).to(dtype)
