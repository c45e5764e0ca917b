"""ttransfer: a transfer-learning train step is an expression."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ttransfer import adapters, align, dist, losses, optim, recipes, schedules, terms, testing, weights
    from ttransfer._errors import TransferError
    from ttransfer.core import (
        Adapter,
        Batch,
        Functional,
        Logs,
        Made,
        Optimizer,
        Out,
        Params,
        Pipe,
        Plan,
        Read,
        Reparam,
        Schedule,
        Spec,
        State,
        Step,
        Term,
        WeightMap,
        alternate,
        carry,
        citation,
        describe,
        detach,
        ema,
        ensemble,
        fixed,
        functional,
        grid,
        member,
        normal,
        parse_path,
        predict,
        read,
        reparam,
        replace,
        reverse,
        set_hyper,
        shared,
        state_dict,
        step,
        sweep,
        term,
        uniform,
        write_back,
    )
    from ttransfer.core import _tree as tree
    from ttransfer.dist import shard
    from ttransfer.run import Fitted, checkpoints, compile, domains, fit, latest, load, loader, save
    from ttransfer.weights import as_reparam

_PACKAGES = {
    "ttransfer.core": (
        "Adapter Batch Functional Logs Made Optimizer Out Params Pipe Plan Read Reparam Schedule Spec State Step "
        "Term WeightMap alternate carry citation describe detach ema ensemble fixed functional grid member normal "
        "parse_path predict read reparam replace reverse set_hyper shared state_dict step sweep term uniform write_back"
    ),
    "ttransfer.run": "Fitted checkpoints compile domains fit latest load loader save",
    "ttransfer.dist": "shard",
    "ttransfer.weights": "as_reparam",
    "ttransfer._errors": "TransferError",
}
_HOME = {name: package for package, names in _PACKAGES.items() for name in names.split()}
_TOPICS = "adapters align dist losses optim recipes schedules terms testing weights"
_HOME.update({name: f"ttransfer.{name}" for name in _TOPICS.split()})
_HOME["tree"] = "ttransfer.core._tree"

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:
        """Import a name when it is first used, so that importing the package costs next to nothing."""
        if name not in _HOME:
            raise AttributeError(f"module 'ttransfer' has no attribute {name!r}")
        module = importlib.import_module(_HOME[name])
        value = module if module.__name__.rsplit(".", 1)[-1].lstrip("_") == name else getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted((*__all__, "__version__"))
