"""Ready terms: losses with parameters or state of their own, bound to what they read."""

from __future__ import annotations

from ttransfer.terms._dann import dann

__all__ = ["dann"]
