"""The one error type, and the wording it shares.

Everything in the library may import this file; it imports nothing.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable
from typing import Any, cast

__all__ = ["TransferError", "nearest", "shown"]

_MANY, _FEW = 2000, 200


class TransferError(ValueError):
    """Raised for every mistake that the library can name.

    The message says what was called, what it got, what it wanted, and what is near.

    Example:
        >>> import ttransfer as tt
        >>> tt.read("student(source")
        Traceback (most recent call last):
        ...
        ttransfer._errors.TransferError: cannot read 'student(source': expected ')' at position 14, found the end
    """


def nearest(name: str, candidates: Iterable[str], limit: int = 3) -> str:
    """Return the tail of a message: what `name` may have meant.

    Example:
        >>> nearest("layr4", ["layer4", "fc"])
        "; did you mean 'layer4'?"
        >>> nearest("zzz", ["layer4", "fc"])
        '; there are: fc, layer4'
    """
    known = sorted(set(candidates))
    if not known:
        return "; there are none"
    close = difflib.get_close_matches(name, _likely(name, known), n=limit, cutoff=0.6)
    # A dotted path often differs in one part only: compare its last part too.
    if not close:
        tail, tails = name.rsplit(".", 1)[-1], {k.rsplit(".", 1)[-1]: k for k in known}
        close = [tails[t] for t in difflib.get_close_matches(tail, _likely(tail, list(tails)), n=limit, cutoff=0.75)]
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(known[:12])
    return f"; there are: {shown}" + (f", ... ({len(known)} in all)" if len(known) > 12 else "")


def _likely(name: str, known: list[str]) -> list[str]:
    """Of very many names those that share most with one: difflib alone takes seconds for a large checkpoint's."""
    if len(known) <= _MANY:
        return known
    step = max(1, len(name) // 16)
    pieces = [name[i : i + 3] for i in range(0, max(1, len(name) - 2), step)]
    return heapq.nlargest(_FEW, known, key=lambda other: sum(p in other for p in pieces) / (len(name) + len(other) + 1))


def shown(value: Any) -> str:
    """Write a value for a message: a tensor's shape and dtype, the items of a list, else the type's name.

    Written when an error is raised and not before: in a graph, the text of a dynamic shape fixes the shape.

    Example:
        >>> import torch
        >>> shown([torch.zeros(2, 3), None])
        '[(2, 3) float32, NoneType]'
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        array = f"{type(value).__name__} " * (type(value).__module__ == "numpy")
        return f"{array}{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (list, tuple)):
        items = cast(list[Any], value)
        return "[" + ", ".join(shown(v) for v in items[:8]) + (", ..." if len(items) > 8 else "") + "]"
    return type(value).__name__
