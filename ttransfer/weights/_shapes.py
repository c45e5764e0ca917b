"""Tensors that are the only ones of their kind and shape."""

from __future__ import annotations

from ttransfer.weights._order import kind
from ttransfer.weights._routes import Tensors

__all__ = ["by_shape"]


def by_shape(src: Tensors, like: Tensors) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, ...]]]:
    """Pair what there is one of on both sides.

    Returns:
        target -> (source, why); target -> candidates where there are several on either side.
    """
    sources: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    targets: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for tensors, found in ((src, sources), (like, targets)):
        for name in tensors:
            found.setdefault(kind(name, tensors), []).append(name)
    pairs: dict[str, tuple[str, str]] = {}
    several: dict[str, tuple[str, ...]] = {}
    for what, wanted in targets.items():
        have = sources.get(what, [])
        if len(have) == len(wanted) == 1:
            leaf, shape = what
            pairs[wanted[0]] = (have[0], f"by shape: the only {leaf!r} {shape} that is left")
        elif have:
            several.update(dict.fromkeys(wanted, tuple(have)))
    return pairs, several
