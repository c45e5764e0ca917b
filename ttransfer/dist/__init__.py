"""Steps over many processes: joining them, sharding a step, what a rank says of others that fail."""

from __future__ import annotations

from ttransfer.dist._init import init
from ttransfer.dist._shard import shard
from ttransfer.dist._slices import Sliced, sliced

__all__ = ["Sliced", "init", "shard", "sliced"]
