"""Which tensors a map was told to change."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ttransfer._errors import TransferError, nearest
from ttransfer.core._tree import matches
from ttransfer.weights._routes import Tensors

__all__ = ["expanded", "named", "spelled"]


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


def expanded(whose: str, pattern: str, to: str, src: Tensors) -> dict[str, str]:
    r"""Name -> the name that is made of it, for the names that an expression matches whole.

    Args:
        whose: the map that asks, for its message.
        pattern: a regular expression.
        to: the new name, with ``\1`` for its first group.
        src: what there is.

    Raises:
        TransferError: for what is no expression or no name made of one, and if nothing matches.

    Example:
        >>> expanded("rename", r"module\.(.*)", r"\1", {"module.fc": None, "epoch": None})
        {'module.fc': 'fc'}
    """
    new: dict[str, str] = {}
    try:
        for name in src:
            if (found := re.fullmatch(pattern, name)) is not None:
                new[name] = found.expand(to)
    except (re.error, IndexError) as error:
        raise TransferError(f"{whose}: cannot make {to!r} of pattern {pattern!r}: {error}") from error
    if not new:
        raise TransferError(f"{whose}: pattern {pattern!r} matches none of {len(src)} names{nearest(pattern, src)}")
    return new


def spelled(axes: Sequence[int]) -> str:
    """Write a grid's or a kernel's size.

    Example:
        >>> spelled((14, 16))
        '14x16'
    """
    return "x".join(map(str, axes))
