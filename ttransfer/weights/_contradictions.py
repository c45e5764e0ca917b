"""What speaks against a pair: its module, its order, its name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["NUMBERED", "crossing", "misnamed", "swapped", "torn"]

NUMBERED = re.compile(r"(.*?)(\d+)")
"""A part of a name that counts: what is counted, and the number."""


def torn(made: Mapping[str, str], by_name: Iterable[str]) -> list[str]:
    """Targets of modules that would be filled from two modules, or share one with another.

    Args:
        made: target -> source.
        by_name: targets of which the names decided, so that they are not in doubt.
    """
    there: dict[str, set[str]] = {}
    back: dict[str, set[str]] = {}
    for target, source in made.items():
        there.setdefault(_module(target), set()).add(_module(source))
        back.setdefault(_module(source), set()).add(_module(target))
    sure = set(by_name)
    return [
        target
        for target, source in made.items()
        if target not in sure and (len(there[_module(target)]) > 1 or len(back[_module(source)]) > 1)
    ]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def crossing(made: Mapping[str, str], of: Iterable[str], src: Iterable[str], like: Iterable[str]) -> list[str]:
    """Targets whose pair crosses another.

    Where the order of the sources is not known, numbers in their names still are: of "bn1.weight" and "bn2.weight"
    the first is the one of the lower number.

    Args:
        made: target -> source.
        of: the targets to judge, among them.
        src: the sources in order; a set if their order is not known.
        like: the targets in order.
    """
    judged = set(of)
    ordered = [name for name in like if name in made]
    lists: dict[str, list[tuple[int, str]]] = {"": []}
    if isinstance(src, (set, frozenset)):
        for target in ordered:
            parts = made[target].split(".")[:-1]
            for depth in range(len(parts)):
                if (number := NUMBERED.fullmatch(".".join(parts[: depth + 1]))) is not None:
                    lists.setdefault(number[1], []).append((int(number[2]), target))
    else:
        rank = {name: i for i, name in enumerate(src)}
        lists[""] = [(rank[made[target]], target) for target in ordered]
    found = {target for pairs in lists.values() for target in _inverted(pairs) if target in judged}
    return [target for target in ordered if target in found]


def _inverted(pairs: Sequence[tuple[int, str]]) -> list[str]:
    """Names whose number is lower than one before, or higher than one behind."""
    high, low = -1, [10**18]
    for number, _ in reversed(pairs):
        low.append(min(low[-1], number))
    found: list[str] = []
    for i, (number, name) in enumerate(pairs):
        if number < high or number > low[len(pairs) - 1 - i]:
            found.append(name)
        high = max(high, number)
    return found


def swapped(made: Mapping[str, str], by_name: Iterable[str], src: Iterable[str], like: Iterable[str]) -> list[str]:
    """Targets whose source has the name of a sibling, which has the target's: "q" from "k" where both sides have both.

    Names are read from the end, past the parts that are equal. Numbers are no names here: what is "1" on one side may
    well be "2" on the other.

    Args:
        made: target -> source.
        by_name: targets of which the names decided.
        src: the sources.
        like: the targets.
    """
    here, there, sure = _children(src), _children(like), set(by_name)
    found: list[str] = []
    for target, source in made.items():
        a, b = target.split("."), source.split(".")
        shorter = min(len(a), len(b))
        back = next((k for k in range(1, shorter + 1) if a[-k] != b[-k]), 0)
        if target in sure or not back or a[-back][-1:].isdigit() or b[-back][-1:].isdigit():
            continue
        if b[-back] in there[tuple(a[:-back])] and a[-back] in here[tuple(b[:-back])]:
            found.append(target)
    return found


def misnamed(
    made: Mapping[str, str], by_name: Iterable[str], kinds: Mapping[str, object]
) -> dict[str, tuple[str, ...]]:
    """Targets among siblings of one kind, of which one is named after the source of another: "k_proj" from "query".

    Nets define query, key and value in this order or in another. What siblings have in common says nothing ("proj"),
    nor do numbers; of the rest, words resemble each other of which one may be short for the other ("q", "query").

    Args:
        made: target -> source.
        by_name: targets of which the names decided.
        kinds: target -> what all tensors that may be exchanged have in common.

    Returns:
        target -> the sources of its siblings, of which each may be meant.
    """
    sure = set(by_name)
    families: dict[object, list[tuple[str, str, str]]] = {}
    for target, source in made.items():
        a, b = target.split("."), source.split(".")
        back = next((k for k in range(1, min(len(a), len(b)) + 1) if a[-k] != b[-k]), 0)
        if target not in sure and back:
            tail = tuple(a[len(a) - back + 1 :])
            family = tuple(a[:-back]), tuple(b[:-back]), tail, kinds[target]
            families.setdefault(family, []).append((target, a[-back], b[-back]))
    found: dict[str, tuple[str, ...]] = {}
    for family in families.values():
        wanted, given = _own_words([a for _, a, _ in family]), _own_words([b for _, _, b in family])
        alike = [{j for j, other in enumerate(given) if _resemble(own, other)} for own in wanted]
        if any(near and i not in near for i, near in enumerate(alike)):
            sources = tuple(made[target] for target, _, _ in family)
            found.update((target, sources) for target, _, _ in family)
    return found


_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def _own_words(names: Sequence[str]) -> list[set[str]]:
    """The words of each name that not all of them have, and what is left of it without what all begin and end with."""
    if len(names) < 2:
        return [set() for _ in names]
    words = [{word.lower() for word in _WORD.findall(name)} for name in names]
    own = [one - set.intersection(*words) for one in words]
    whole = ["".join(_WORD.findall(name)).lower() for name in names]
    begin = _alike(whole)
    end = _alike([name[begin:][::-1] for name in whole])
    left = [name[begin : len(name) - end] for name in whole]
    return [one | ({rest} - {""}) for one, rest in zip(own, left, strict=True)]


def _alike(names: Sequence[str]) -> int:
    """With how many letters all names begin."""
    letters = zip(*names, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda those: len(set(those)) == 1, letters))


def _resemble(one: Iterable[str], other: Iterable[str]) -> bool:
    return any(_short_for(a, b) or _short_for(b, a) for a in one for b in other)


def _short_for(short: str, long: str) -> bool:
    """Whether a word may be short for another: its letters come in it, in order, the first one first, or it ends it."""
    if len(short) > 2 and long.endswith(short):
        return True
    letters = iter(long)
    return long[:1] == short[:1] and all(letter in letters for letter in short)


def _children(names: Iterable[str]) -> dict[tuple[str, ...], set[str]]:
    """Module -> the parts of names that come next."""
    found: dict[tuple[str, ...], set[str]] = {}
    for name in names:
        parts = tuple(name.split("."))
        for depth, part in enumerate(parts):
            found.setdefault(parts[:depth], set()).add(part)
    return found
