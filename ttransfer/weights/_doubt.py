"""What an order says is in doubt where a shape contradicts it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ttransfer.weights._order import kind, kinds
from ttransfer.weights._routes import Tensors

__all__ = ["Crossing", "crossings", "in_doubt"]


class Crossing(NamedTuple):
    """Two pairs that stand one way round in the source, and the other way round in the target.

    Attributes:
        shape: the target of the one, which is sure: it is the only one of its shape.
        order: the target of the other, of which the order decided.
        here: the smallest part of the source that both sources are in.
        there: the smallest part of the target that both targets are in.
    """

    shape: str
    order: str
    here: str
    there: str


def crossings(by_order: Mapping[str, str], by_shape: Mapping[str, str], src: Tensors, like: Tensors) -> list[Crossing]:
    """Find the pairs by order that pairs by shape cross.

    Args:
        by_order: target -> source.
        by_shape: target -> source.
        src: the source in order.
        like: the target in order.

    Example:
        >>> import torch
        >>> names = ["down.norm.weight", "down.conv.weight"], ["merge.conv.weight", "merge.norm.weight"]
        >>> like, src = ({name: torch.zeros(len(name.split(".")[1])) for name in side} for side in names)
        >>> crossings({names[0][0]: names[1][1]}, {names[0][1]: names[1][0]}, src, like)
        [Crossing(shape='down.conv.weight', order='down.norm.weight', here='merge', there='down')]
    """
    here, there = ({name: i for i, name in enumerate(side)} for side in (src, like))
    return [
        Crossing(one, two, _part(by_shape[one], by_order[two]), _part(one, two))
        for one in by_shape
        for two in by_order
        if (here[by_shape[one]] < here[by_order[two]]) != (there[one] < there[two])
    ]


def in_doubt(
    found: Iterable[Crossing], by_order: Mapping[str, str], sure: Iterable[str], src: Tensors, like: Tensors
) -> dict[str, tuple[str, ...]]:
    """Return the targets that an order may have filled wrong, and the sources that each may be meant to have.

    Where a pair by shape crosses one by order, the parts that hold them list their tensors differently. What is the
    only one of its kind and shape in such a part is what it is all the same.

    Args:
        found: as `crossings` gives it.
        by_order: target -> source.
        sure: the sources that go by name, which nobody else gets.
        src: the source.
        like: the target.
    """
    gone = set(sure)
    doubtful: dict[str, tuple[str, ...]] = {}
    for here, there in dict.fromkeys((one.here, one.there) for one in found):
        sources = kinds({name: x for name, x in src.items() if _is_in(here, name) and name not in gone})
        targets = kinds({name: x for name, x in like.items() if _is_in(there, name)})
        for target, source in by_order.items():
            if _is_in(there, target) or _is_in(here, source):
                what = kind(target, like)
                if sources.get(what) != [source] or targets.get(what) != [target]:
                    doubtful[target] = tuple(dict.fromkeys((*doubtful.get(target, ()), *sources.get(what, (source,)))))
    return doubtful


def _part(one: str, two: str) -> str:
    """The module that holds two tensors: their paths as far as they are one."""
    pairs = zip(one.split(".")[:-1], two.split(".")[:-1], strict=False)
    return ".".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _is_in(part: str, name: str) -> bool:
    return not part or name.startswith(f"{part}.")
