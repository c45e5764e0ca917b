"""The algebra: types, paths, functional, term, step, and what is done to steps.

Imports nothing else of the library.
"""

from __future__ import annotations

from ttransfer.core._alternate import alternate
from ttransfer.core._carry import carry
from ttransfer.core._citation import citation
from ttransfer.core._describe import describe
from ttransfer.core._functional import functional, reparam
from ttransfer.core._hyper import fixed, set_hyper
from ttransfer.core._maps import Adapter, Made, Plan, Reparam, WeightMap
from ttransfer.core._members import ensemble, grid, member, sweep
from ttransfer.core._paths import parse_path
from ttransfer.core._predict import predict, state_dict, write_back
from ttransfer.core._reads import Pipe, Read, detach, read, reverse, shared
from ttransfer.core._rebuild import replace
from ttransfer.core._step import Spec, Step, ema, step
from ttransfer.core._term import term
from ttransfer.core._types import Batch, Functional, Logs, Optimizer, Out, Params, Schedule, State, Term
from ttransfer.core._uniform import normal, uniform

__all__ = [
    "Adapter",
    "Batch",
    "Functional",
    "Logs",
    "Made",
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
    "alternate",
    "carry",
    "citation",
    "describe",
    "detach",
    "ema",
    "ensemble",
    "fixed",
    "functional",
    "grid",
    "member",
    "normal",
    "parse_path",
    "predict",
    "read",
    "reparam",
    "replace",
    "reverse",
    "set_hyper",
    "shared",
    "state_dict",
    "step",
    "sweep",
    "term",
    "uniform",
    "write_back",
]
