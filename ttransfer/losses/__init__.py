"""Losses as plain functions: tensors in, one scalar out."""

from __future__ import annotations

from ttransfer.losses._entropy import entropy
from ttransfer.losses._kd import kd

__all__ = ["entropy", "kd"]
