"""Adapters (feature -> feature) and Reparams (parameters -> parameters)."""

from __future__ import annotations

from ttransfer.adapters._conv import conv
from ttransfer.adapters._gc_block import gc_block
from ttransfer.adapters._linear import linear, mlp
from ttransfer.adapters._lora import lora
from ttransfer.adapters._module import module
from ttransfer.adapters._patch import patch, pooled
from ttransfer.adapters._stochnorm import stochnorm

__all__ = [
    "conv",
    "gc_block",
    "linear",
    "lora",
    "mlp",
    "module",
    "patch",
    "pooled",
    "stochnorm",
]
