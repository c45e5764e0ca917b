"""Ready terms: losses with parameters or state of their own, bound to what they read."""

from __future__ import annotations

from ttransfer.terms._afd import afd
from ttransfer.terms._crd import crd
from ttransfer.terms._ctkd import ctkd
from ttransfer.terms._dann import dann
from ttransfer.terms._mgd import mgd, mgd_channels
from ttransfer.terms._ofd import ofd
from ttransfer.terms._reviewkd import reviewkd
from ttransfer.terms._vid import vid

__all__ = ["afd", "crd", "ctkd", "dann", "mgd", "mgd_channels", "ofd", "reviewkd", "vid"]
