"""Ready terms: losses with parameters or state of their own, bound to what they read."""

from __future__ import annotations

from ttransfer.terms._adda import adda, domain_confusion
from ttransfer.terms._advent import advent
from ttransfer.terms._afd import afd
from ttransfer.terms._atdoc import atdoc
from ttransfer.terms._atdoc_nc import atdoc_nc
from ttransfer.terms._cdan import cdan, cdan_e
from ttransfer.terms._crd import crd
from ttransfer.terms._ctkd import ctkd
from ttransfer.terms._dann import dann
from ttransfer.terms._fishr import fishr
from ttransfer.terms._flexmatch import flexmatch
from ttransfer.terms._groupdro import groupdro
from ttransfer.terms._gvb import gvb, gvb_e
from ttransfer.terms._mcd import mcd
from ttransfer.terms._mdd import mdd
from ttransfer.terms._mgd import mgd, mgd_channels
from ttransfer.terms._multilevel import multilevel
from ttransfer.terms._ofd import ofd
from ttransfer.terms._partial import iwan, osbp, pada
from ttransfer.terms._reviewkd import reviewkd
from ttransfer.terms._sliced import sliced_wasserstein
from ttransfer.terms._symnets import symnets
from ttransfer.terms._vat import vat
from ttransfer.terms._vid import vid
from ttransfer.terms._wdgrl import wdgrl, wdgrl_phases

__all__ = [
    "adda",
    "advent",
    "afd",
    "atdoc",
    "atdoc_nc",
    "cdan",
    "cdan_e",
    "crd",
    "ctkd",
    "dann",
    "domain_confusion",
    "fishr",
    "flexmatch",
    "groupdro",
    "gvb",
    "gvb_e",
    "iwan",
    "mcd",
    "mdd",
    "mgd",
    "mgd_channels",
    "multilevel",
    "ofd",
    "osbp",
    "pada",
    "reviewkd",
    "sliced_wasserstein",
    "symnets",
    "vat",
    "vid",
    "wdgrl",
    "wdgrl_phases",
]
