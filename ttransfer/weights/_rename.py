"""Give tensors other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._named import expanded
from ttransfer.weights._routes import Routes, Tensors, routed, taken


def rename(names: Mapping[str, str] | str, to: str | None = None) -> WeightMap:
    r"""Give tensors other names; those that are not named keep theirs.

    Inside a compiled step use a mapping: torch 2.8 cannot trace regular expressions.

    Args:
        names: old name -> new name, for whole names and for prefixes that end at a dot (the longest counts), of which
            an empty new name takes the prefix off; or a regular expression for the whole name.
        to: for a regular expression, the new name, with ``\1`` for its first group.

    Returns:
        A `WeightMap` that returns all source tensors, and does not look at the target's. Its plan shows
        which target names that leaves without a tensor, or with one of another shape.

    Raises:
        TransferError: for a new name that is no string; at use, if an old name or the expression is not found, a
            tensor gets an empty name or one with an empty part, such as "head..weight", or two get one name.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"module.fc.weight": torch.ones(2, 3), "module.fc.bias": torch.ones(2)}
        >>> list(tt.weights.rename({"module.fc": "head"}).apply(src, {}))
        ['head.weight', 'head.bias']
        >>> list(tt.weights.rename(r"module\.(.*)", r"\1").apply(src, {}))
        ['fc.weight', 'fc.bias']
    """
    if isinstance(names, str) != (to is not None):
        raise TransferError(f"rename: wanted a mapping, or a pattern and what to make of it; got {names!r} and {to!r}")
    given: Any = {} if isinstance(names, str) else names
    for old, new in given.items():
        if not isinstance(new, str):
            raise TransferError(f"rename: wanted a name for {old!r}, got {shown(new)}")

    def routes(src: Tensors, like: Tensors) -> Routes:
        new = expanded("rename", names, to or "", src) if isinstance(names, str) else _by_name(names, src)
        found: dict[str, str] = {}
        for old in src:
            name = new.get(old, old)
            if not name:
                raise TransferError(f"rename: {old!r} would become an empty name; tt.weights.drop leaves a tensor out")
            if "" in name.split(".") and "" not in old.split("."):
                raise TransferError(f"rename: {old!r} would become {name!r}, of which a part between dots is empty")
            if name in found:
                raise TransferError(f"rename: both {found[name]!r} and {old!r} would become {name!r}")
            found[name] = old
        return Routes({name: taken(old) for name, old in found.items()})

    return routed(routes)


def _by_name(names: Mapping[str, str], src: Tensors) -> dict[str, str]:
    new: dict[str, str] = {}
    for old in sorted(names, key=len):  # the longest last: it overrides
        covered = [name for name in src if name == old or name.startswith(old + ".")]
        if not covered:
            cure = f"; a prefix is given without its dot, {old[:-1]!r}" if old.endswith(".") else nearest(old, src)
            raise TransferError(f"rename: the source has no {old!r}{cure}")
        # Without a new prefix, the dot behind the old one goes too.
        new.update({name: (names[old] + name[len(old) :]) if names[old] else name[len(old) + 1 :] for name in covered})
    return new
