"""Leave tensors out, and say so."""

from __future__ import annotations

from collections.abc import Sequence

from ttransfer._errors import TransferError, nearest
from ttransfer.core._maps import WeightMap
from ttransfer.core._tree import matches
from ttransfer.weights._routes import Routes, Tensors, routed, taken

__all__ = ["drop", "select"]


def select(patterns: str | Sequence[str]) -> WeightMap:
    """Take the source tensors that a pattern matches; the others go nowhere.

    Args:
        patterns: regular expressions for whole names; one that matches is enough.

    Returns:
        A `WeightMap` whose plan says of the others that they were not selected.

    Raises:
        TransferError: at use, for a pattern that matches no source.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"teacher.fc.bias": torch.ones(1), "student.fc.bias": torch.ones(1)}
        >>> list(tt.weights.select(r"student\\..*").apply(src, {}))
        ['student.fc.bias']
    """
    return _choosing("select", patterns, takes=True)


def drop(patterns: str | Sequence[str]) -> WeightMap:
    """Leave out the source tensors that a pattern matches, such as an old head.

    Args:
        patterns: regular expressions for whole names; one that matches is enough.

    Returns:
        A `WeightMap` whose plan says of these that they were dropped.

    Raises:
        TransferError: at use, for a pattern that matches no source.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"conv.weight": torch.ones(1), "fc.weight": torch.ones(1), "fc.bias": torch.ones(1)}
        >>> list(tt.weights.drop(r"fc\\..*").apply(src, {}))
        ['conv.weight']
    """
    return _choosing("drop", patterns, takes=False)


def _choosing(whose: str, patterns: str | Sequence[str], *, takes: bool) -> WeightMap:
    wanted = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not wanted:
        raise TransferError(f"{whose}: no patterns; want a regular expression for whole names, or several")

    def routes(src: Tensors, like: Tensors) -> Routes:
        hit = {name: [p for p in wanted if matches(p, name)] for name in src}
        for pattern in wanted:
            if not any(pattern in found for found in hit.values()):
                raise TransferError(f"{whose}: pattern {pattern!r} matches no source{nearest(pattern, src)}")
        kept = {name: taken(name) for name in src if bool(hit[name]) == takes}
        why = "not selected" if takes else "dropped"
        return Routes(kept, unused={name: why for name in src if name not in kept})

    return routed(routes)
