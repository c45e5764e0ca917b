"""Ready terms: losses with parameters or state of their own, bound to what they read."""

from __future__ import annotations

from ttransfer.terms._ctkd import ctkd
from ttransfer.terms._dann import dann
from ttransfer.terms._vid import vid

__all__ = ["ctkd", "dann", "vid"]
