"""Two lists of tensors side by side: which pairs does every best alignment have?"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence

import torch

from ttransfer.weights._contradictions import NUMBERED, crossing
from ttransfer.weights._routes import Tensors

__all__ = ["Decided", "by_order", "disorder", "kind", "kinds"]

Decided = tuple[dict[str, tuple[str, str]], dict[str, tuple[str, ...]]]
"""target -> (source, why); target -> the sources that may be meant."""
Kind = tuple[str, tuple[int, ...]]

_MOST = 4_000_000  # cells of the table


def kind(name: str, tensors: Tensors) -> Kind:
    """What two tensors must have in common: the last part of the name, and the shape."""
    return name.rpartition(".")[2], tuple(tensors[name].shape)


def kinds(tensors: Tensors) -> dict[Kind, list[str]]:
    """Sort names by kind."""
    found: dict[Kind, list[str]] = {}
    for name in tensors:
        found.setdefault(kind(name, tensors), []).append(name)
    return found


def disorder(tensors: Tensors) -> str:
    """Say why the order of names cannot be that in which a module defines its tensors; empty if it can.

    A state dict goes depth first, lists a module's own tensors before those of its children, and children with a
    number as they rise. Names in alphabetical order say nothing, unless numbers alone tell them apart; a safetensors
    file has them so for each dtype.

    Example:
        >>> disorder(dict.fromkeys(["conv.weight", "conv.bias", "blocks.9.weight", "blocks.10.weight"], torch.ones(1)))
        ''
        >>> disorder(dict.fromkeys(["conv.bias", "conv.weight"], torch.ones(1)))
        'the names are in alphabetical order, as in a sorted file'
        >>> disorder(dict.fromkeys(["blocks.1.weight", "blocks.0.weight"], torch.ones(1)))
        "'blocks.0' comes after 'blocks.1'"
    """
    listed = list(tensors)
    here: list[str] = []
    left: set[str] = set()
    last: dict[str, tuple[int, str]] = {}
    for name in listed:
        path = name.split(".")[:-1]
        shared = _shared(path, here)
        if shared == len(path) < len(here):
            return f"{name!r} comes after {'.'.join(here[: shared + 1])!r}"
        left.update(".".join(here[:depth]) for depth in range(shared + 1, len(here) + 1))
        for depth in range(shared, len(path)):
            opened = ".".join(path[: depth + 1])
            if opened in left:
                return f"{opened!r} is in two places"
            if (number := NUMBERED.fullmatch(opened)) is not None:
                before = last.get(number[1])
                if before is not None and int(number[2]) < before[0]:
                    return f"{opened!r} comes after {before[1]!r}"
                last[number[1]] = int(number[2]), opened
        here = path
    return "the names are in alphabetical order, as in a sorted file" if _filed(tensors) else ""


def _filed(tensors: Tensors) -> bool:
    """Whether names are in alphabetical order, or for each dtype, and something else than numbers decides."""
    runs: dict[torch.dtype, list[str]] = {}
    for name, x in tensors.items():
        runs.setdefault(x.dtype, []).append(name)
    for ways in ([list(tensors)], list(runs.values())):
        if list(tensors) == [name for run in ways for name in sorted(run)]:
            return not all(_counted(a, b) for run in ways for a, b in itertools.pairwise(run))
    return False


def _shared(a: Sequence[str], b: Sequence[str]) -> int:
    """How many parts two paths have in common."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


def _counted(a: str, b: str) -> bool:
    """Whether it is by numbers that two names differ first."""
    one, other = a.split("."), b.split(".")
    shared = _shared(one, other)
    return shared < min(len(one), len(other)) and one[shared].isdecimal() and other[shared].isdecimal()


def by_order(src: Tensors, like: Tensors, made: Mapping[str, str], here: Tensors, there: Tensors) -> Decided:
    """Pair what is left of the two lists, in order; nothing crosses the pairs that are made already.

    Args:
        src: the whole source.
        like: the whole target.
        made: target -> source of the pairs that are made.
        here: the sources that may be paired.
        there: the targets that may be paired.

    Returns:
        target -> (source, why) for the pairs that every longest alignment has; target -> candidates for the others
        that could be aligned.
    """
    if crossing(made, made, src, like):
        return {}, {}
    rank = {name: i + 1 for i, name in enumerate(here)}
    pairs: dict[str, tuple[str, str]] = {}
    doubtful: dict[str, tuple[str, ...]] = {}
    taken = set(made.values())
    for sources, targets in zip(_cut(src, taken, here), _cut(like, made, there), strict=True):
        choices = _ranked([kind(n, src) for n in sources], [kind(n, like) for n in targets])
        for one in choices:
            if len(one) == 1:
                (i, j) = one[0]
                pairs[targets[j]] = sources[i], f"by order: {rank[sources[i]]} of {len(here)}"
            for i, j in one if len(one) > 1 else ():
                doubtful[targets[j]] = tuple(dict.fromkeys((*doubtful.get(targets[j], ()), sources[i])))
    return pairs, doubtful


def _cut(names: Iterable[str], at: Iterable[str], of: Iterable[str]) -> list[list[str]]:
    """Cut a list at some names, and keep some of the others."""
    marks, wanted = set(at), set(of)
    runs: list[list[str]] = [[]]
    for name in names:
        if name in marks:
            runs.append([])
        elif name in wanted:
            runs[-1].append(name)
    return runs


Pairs = list[tuple[int, int]]


def _ranked(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[Pairs]:
    """Of all longest common subsequences, the pairs of positions that come first, second, ...: one if all agree."""
    # What only one side has is in no pair.
    both = set(a) & set(b)
    rows = [i for i, x in enumerate(a) if x in both]
    columns = [j for j, x in enumerate(b) if x in both]
    a, b = [a[i] for i in rows], [b[j] for j in columns]
    if a == b:
        return [[pair] for pair in zip(rows, columns, strict=True)]
    n, m = len(a), len(b)
    if n * m > _MOST:
        return []
    after, before = _lengths(a, b), _lengths(a[::-1], b[::-1])
    found: list[Pairs] = [[] for _ in range(after[0][0])]
    for i in range(n):
        for j in range(m):
            rank = before[n - i][m - j]
            if a[i] == b[j] and rank + 1 + after[i + 1][j + 1] == len(found):
                found[rank].append((rows[i], columns[j]))
    return found


def _lengths(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[list[int]]:
    """The lengths of the longest common subsequences of a[i:] and b[j:]."""
    length = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        row, below = length[i], length[i + 1]
        for j in range(len(b) - 1, -1, -1):
            row[j] = below[j + 1] + 1 if a[i] == b[j] else max(below[j], row[j + 1])
    return length
