"""Distances between two domains as plain functions: features in, one scalar out."""

from __future__ import annotations

from ttransfer.align._adversarial import domain_adversarial, gradient_reversal
from ttransfer.align._coral import coral
from ttransfer.align._mmd import mmd, mmd_linear, mmd_unbiased

__all__ = ["coral", "domain_adversarial", "gradient_reversal", "mmd", "mmd_linear", "mmd_unbiased"]
