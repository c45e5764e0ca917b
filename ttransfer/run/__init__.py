"""Running steps: data, the loop, checkpoints."""

from __future__ import annotations

from ttransfer.run._checkpoint import checkpoints, latest, load, save
from ttransfer.run._compile import compile
from ttransfer.run._data import Loader, loader
from ttransfer.run._domains import Domains, domains
from ttransfer.run._fit import Fitted, fit

__all__ = [
    "Domains",
    "Fitted",
    "Loader",
    "checkpoints",
    "compile",
    "domains",
    "fit",
    "latest",
    "load",
    "loader",
    "save",
]
