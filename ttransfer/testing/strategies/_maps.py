"""Weight maps, each with a source and a target that fit."""

from __future__ import annotations

import itertools
import math
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from ttransfer.core._maps import WeightMap
from ttransfer.testing.strategies._check import bounds_of, known, real_dtypes
from ttransfer.testing.strategies._trees import SHAPES, Leaf, letters, names_and_leaves
from ttransfer.weights import chain, match, rename

__all__ = ["MAPS", "MapCase", "weight_maps"]

_PLANS = {
    # Family, number of renames, whether a match is last: as many of each family. It is drawn as one choice, so that a
    # map that is a part of another can take its place.
    "match": [("match", 0, True)] * 6,
    "rename": [("rename", 1, False)] * 6,
    "chain": [("chain", renames, matched) for matched in (False, True) for renames in (0, 1, 2)],
}
MAPS = tuple(_PLANS)
Leaves = dict[str, Leaf]


class MapCase(NamedTuple):
    """A weight map, and what it can be applied to.

    Attributes:
        map: the weight map.
        src: its source; the numbers count from 1 through all tensors, so that they tell where one came from.
        like: its target; the numbers count from -1 downwards.
        text: the map as it is written, for people.

    Example:
        >>> a = {"a": torch.ones(2)}
        >>> case = MapCase(rename({"a": "b"}), a, {"b": torch.zeros(2)}, "rename({'a': 'b'})")
        >>> case.map.apply(case.src, case.like)
        {'b': tensor([1., 1.])}
    """

    map: WeightMap
    src: dict[str, Tensor]
    like: dict[str, Tensor]
    text: str


def weight_maps(
    *families: str, leaves: tuple[int, int] = (1, 4), dtypes: Sequence[torch.dtype] = (torch.float64,)
) -> SearchStrategy[MapCase]:
    """Draw weight maps that can be applied, with source and target.

    Args:
        *families: from which to draw, all if none is named: "match" (names in another order, sources that nothing asks
            for, targets that stay because they are new or of another shape), "rename" (names, some of them exchanged;
            prefixes, one with an exception; patterns that put all under a prefix or take all out), "chain" (none to
            two renames, then a match or none).
        leaves: the fewest and the most tensors of the source.
        dtypes: of source and target, drawn apart, the simplest first.

    Returns:
        A strategy for `MapCase`; it shrinks to a match of one 0-d tensor.

    Raises:
        TransferError: for a family that is not there, no range of leaves, or no dtypes of real numbers.

    Example:
        >>> from hypothesis import find
        >>> case = find(weight_maps(), lambda case: case.text.startswith("rename"))
        >>> case.text, case.src, case.like
        ("rename({'a': 'z'})", {'a': tensor(1., dtype=torch.float64)}, {'z': tensor(-1., dtype=torch.float64)})
        >>> case.map.apply(case.src, case.like)
        {'z': tensor(1., dtype=torch.float64)}
    """
    for family in families:
        known("weight_maps", family, MAPS)
    sizes = bounds_of("weight_maps", "leaves", leaves, least=1)
    plans = [plan for family in families or MAPS for plan in _PLANS[family]]
    kinds = real_dtypes("weight_maps", dtypes)
    return _weight_maps(st.sampled_from(plans), names_and_leaves(sizes, SHAPES, kinds), st.sampled_from(kinds))


@st.composite
def _weight_maps(
    draw: DrawFn,
    plans: SearchStrategy[tuple[str, int, bool]],
    starts: SearchStrategy[Leaves],
    dtypes: SearchStrategy[torch.dtype],
) -> MapCase:
    family, renames, matched = draw(plans)
    start = here = draw(starts)
    made: list[_Made] = []
    for _ in range(renames):
        made.append(_rename(draw, here, first=not made))
        here = made[-1].after
    if matched:
        made.append(_match(draw, here, dtypes))
        here = made[-1].after
    src, like = _counted(made[0].before if made else start, 1), _counted(here, -1)
    if family != "chain":
        return MapCase(made[0].map, src, like, made[0].text)
    return MapCase(chain(*(one.map for one in made)), src, like, f"chain({', '.join(one.text for one in made)})")


class _Made(NamedTuple):
    map: WeightMap
    before: Leaves
    after: Leaves
    text: str


def _counted(leaves: Leaves, sign: int) -> dict[str, Tensor]:
    """Fill tensors with 1, 2, 3, ... through all of them, or with -1, -2, -3, ..."""
    first, found = 1, dict[str, Tensor]()
    for name, (shape, dtype) in leaves.items():
        size = math.prod(shape)
        found[name] = (sign * torch.arange(first, first + size)).reshape(shape).to(dtype)
        first += size
    return found


def _rename(draw: DrawFn, here: Leaves, *, first: bool) -> _Made:
    names = list(here)
    groups = list(dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name))
    # Drawn for every kind, so that none takes fewer choices than the simplest, "names".
    some = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    more = [*["out"] * first, *["exchange"] * (len(names) > 1), *["prefix", "exception"] * bool(groups)]
    kind = draw(st.sampled_from(["names", "under", *more]))
    new = _fresh(names)
    if kind == "under":
        after = {f"{new}.{name}": leaf for name, leaf in here.items()}
        return _Made(rename("(.*)", f"{new}.\\1"), here, after, f"rename('(.*)', r'{new}.\\1')")
    if kind == "out":
        before = {f"{new}.{name}": leaf for name, leaf in here.items()}
        return _Made(rename(rf"{new}\.(.*)", r"\1"), before, here, rf"rename(r'{new}\.(.*)', r'\1')")
    if kind == "names":
        table = moved = dict(zip(some, _free(names), strict=False))
    elif kind == "exchange":
        some += [name for name in names if name not in some][: 2 - len(some)]
        table = moved = dict(zip(some, [*some[1:], some[0]], strict=True))
    else:
        group = draw(st.sampled_from(groups))
        table = {group: new}
        moved = {name: new + name[len(group) :] for name in names if name.startswith(group + ".")}
        if kind == "exception":
            inner = draw(st.sampled_from(list(moved)))
            table[inner] = moved[inner] = _fresh([*names, new])
    after = {moved.get(name, name): leaf for name, leaf in here.items()}
    return _Made(rename(table), here, after, f"rename({table})")


def _fresh(names: Iterable[str]) -> str:
    return next(_free(names))


def _free(names: Iterable[str]) -> Iterator[str]:
    """Yield names from the end of the alphabet with which none begins."""
    taken = {name.split(".")[0] for name in names}
    longer = itertools.islice(letters(), 26, None)
    return (name for name in itertools.chain(reversed(string.ascii_lowercase), longer) if name not in taken)


_HOW = st.sampled_from(["fits", "other shape", "unused"])


def _match(draw: DrawFn, here: Leaves, dtypes: SearchStrategy[torch.dtype]) -> _Made:
    """Make a target of what is here: some fit, some are asked for in another shape, some are not asked for."""
    after: Leaves = {}
    stay: list[str] = []
    for i, (name, leaf) in enumerate(here.items()):
        how = draw(_HOW) if i else "fits"
        if how != "unused":
            shape = leaf.shape if how == "fits" else (*leaf.shape, 2)
            after[name] = Leaf(shape, draw(dtypes))
        if how != "fits":
            stay.append(name)
    if draw(st.booleans()):
        stay.append(_fresh(here))
        after[stay[-1]] = Leaf((), draw(dtypes))
    if len(after) > 1 and draw(st.booleans()):
        after = dict(reversed(after.items()))
    patterns = [re.escape(name) for name in stay]
    allow = patterns[0] if len(patterns) == 1 else tuple(patterns)
    return _Made(match(allow=allow), here, after, f"match(allow={allow!r})" if stay else "match()")
