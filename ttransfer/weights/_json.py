"""JSON from a file that nobody vouches for."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["decoded"]


def decoded(text: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: for what is no UTF-8, no JSON, no object, nested too deep, or has a name twice.

    Example:
        >>> decoded(b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ...
        ValueError: 'a' stands in it twice
    """
    try:
        found: Any = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"it is a {type(found).__name__}, no object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"{key!r} stands in it twice")
            seen.add(key)
    return found
