"""WeightMaps: checkpoint -> parameters, pure and differentiable, with a dry run."""

from __future__ import annotations

from ttransfer.weights._chain import chain
from ttransfer.weights._match import match
from ttransfer.weights._rename import rename
from ttransfer.weights._show import show

__all__ = ["chain", "match", "rename", "show"]
