"""The algebra: types, paths, functional, term, step, and what is done to steps.

Imports nothing else of the library.
"""

from __future__ import annotations

from ttransfer.core._functional import functional, reparam
from ttransfer.core._hyper import fixed, set_hyper
from ttransfer.core._paths import parse_path
from ttransfer.core._reads import Pipe, Read, detach, read, reverse, shared
from ttransfer.core._step import Spec, Step, ema, step
from ttransfer.core._term import term
from ttransfer.core._types import (
    Adapter,
    Batch,
    Functional,
    Logs,
    Optimizer,
    Out,
    Params,
    Plan,
    Reparam,
    Schedule,
    State,
    Term,
    WeightMap,
)

__all__ = [
    "Adapter",
    "Batch",
    "Functional",
    "Logs",
    "Optimizer",
    "Out",
    "Params",
    "Pipe",
    "Plan",
    "Read",
    "Reparam",
    "Schedule",
    "Spec",
    "State",
    "Step",
    "Term",
    "WeightMap",
    "detach",
    "ema",
    "fixed",
    "functional",
    "parse_path",
    "read",
    "reparam",
    "reverse",
    "set_hyper",
    "shared",
    "step",
    "term",
]
