"""What `make bench-losses` measured and wrote: loss -> (the peer, its time by ours eager, by ours compiled)."""

from __future__ import annotations

__all__ = ["SPEEDS"]

SPEEDS: dict[str, tuple[str, float, float]] = {}
