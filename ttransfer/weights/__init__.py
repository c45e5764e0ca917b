"""WeightMaps: checkpoint -> parameters, pure and differentiable, with a dry run."""

from __future__ import annotations

from ttransfer.weights._as_reparam import as_reparam
from ttransfer.weights._chain import chain
from ttransfer.weights._match import match, match_by_name, match_by_order, match_by_shape
from ttransfer.weights._pool import pool, within
from ttransfer.weights._rename import rename
from ttransfer.weights._select import drop, select
from ttransfer.weights._show import show
from ttransfer.weights._transfer import transfer

__all__ = [
    "as_reparam",
    "chain",
    "drop",
    "match",
    "match_by_name",
    "match_by_order",
    "match_by_shape",
    "pool",
    "rename",
    "select",
    "show",
    "transfer",
    "within",
]
