"""Adapters (feature -> feature) and Reparams (parameters -> parameters)."""

from __future__ import annotations

from ttransfer.adapters._conv import conv
from ttransfer.adapters._linear import linear, mlp
from ttransfer.adapters._lora import lora

__all__ = ["conv", "linear", "lora", "mlp"]
