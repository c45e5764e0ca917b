"""Which tensors a map was told to change."""

from __future__ import annotations

from collections.abc import Sequence

from ttransfer._errors import TransferError, nearest
from ttransfer.core._tree import matches
from ttransfer.weights._routes import Tensors

__all__ = ["named", "spelled"]


def named(whose: str, patterns: str | Sequence[str], tensors: Tensors, where: str = "source") -> list[str]:
    """Find the tensors that a pattern matches, in their order.

    A name that is there is itself, whatever it means as an expression, so that a map that is given names compiles
    where regular expressions cannot be traced.

    Args:
        whose: the map that asks, for its message.
        patterns: names, and regular expressions for whole names.
        tensors: what there is.
        where: what these are, for the message.

    Raises:
        TransferError: for a pattern that matches nothing, and for none at all.

    Example:
        >>> named("cast", ["fc.weight", "c.*"], {"fc.bias": None, "conv.bias": None, "fc.weight": None})
        ['conv.bias', 'fc.weight']
    """
    wanted = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not wanted:
        raise TransferError(f"{whose}: no names and no patterns")
    found: set[str] = set()
    for pattern in wanted:
        hit = [pattern] if pattern in tensors else [name for name in tensors if matches(pattern, name)]
        if not hit:
            raise TransferError(f"{whose}: pattern {pattern!r} matches no {where}{nearest(pattern, tensors)}")
        found.update(hit)
    return [name for name in tensors if name in found]


def spelled(axes: Sequence[int]) -> str:
    """Write a grid's or a kernel's size.

    Example:
        >>> spelled((14, 16))
        '14x16'
    """
    return "x".join(map(str, axes))
