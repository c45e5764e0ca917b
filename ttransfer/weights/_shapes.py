"""Tensors that are the only ones of their kind and shape."""

from __future__ import annotations

from collections.abc import Mapping

from ttransfer.weights._contradictions import crossing
from ttransfer.weights._order import Decided, disorder, kind, kinds
from ttransfer.weights._routes import Tensors

__all__ = ["by_shape"]


def by_shape(src: Tensors, like: Tensors, made: Mapping[str, str], here: Tensors, there: Tensors) -> Decided:
    """Pair what there is one of on both sides.

    What is the only one of its kind and shape in the whole source and the whole target goes wherever it is. What is
    only the last one left must not contradict the pairs that are made: the order of definition, or where that is not
    known, the numbers in the sources' names. So a module that is counted otherwise on one side ("2" is the second
    layer here, and the third there) is not filled from what its namesake leaves over.

    Args:
        src: the whole source.
        like: the whole target.
        made: target -> source of the pairs that are made.
        here: the sources that may be paired.
        there: the targets that may be paired.

    Returns:
        target -> (source, why); target -> candidates where there are several on either side, or the one is refused.
    """
    sources, every, wanted = kinds(here), kinds(src), kinds(like)
    pairs: dict[str, tuple[str, str]] = {}
    several: dict[str, tuple[str, ...]] = {}
    for what, targets in kinds(there).items():
        have = sources.get(what, [])
        if len(have) == len(targets) == 1:
            leaf, shape = what
            pairs[targets[0]] = (have[0], f"by shape: the only {leaf!r} {shape} that is left")
        elif have:
            several.update(dict.fromkeys(targets, tuple(have)))
    last = [t for t in pairs if max(len(side[kind(t, like)]) for side in (every, wanted)) > 1]
    both = {**made, **{target: pairs[target][0] for target in last}}
    ordered = not (disorder(src) or disorder(like)) and not crossing(made, made, src, like)
    for target in crossing(both, last, src if ordered else set(src), like):
        several[target] = (pairs.pop(target)[0],)
    return pairs, several
