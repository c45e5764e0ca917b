"""All losses of the library on trial, wherever their tests are."""

from __future__ import annotations

import importlib
import pathlib
from typing import Any

import torch

from ttransfer._claims import claims_of
from ttransfer.testing import Trial

ROOT = pathlib.Path(__file__).parents[1]

__all__ = ["all_trials"]


def all_trials() -> list[Trial]:
    """The trials of this library's own losses, by their tests' modules."""
    paths = [path for place in ("losses", "align") for path in sorted((ROOT / place).glob("test_*.py"))]
    names = [*(f"tests.{path.parent.name}.{path.stem}" for path in paths), "tests.testing.test_losses"]
    modules: list[Any] = []
    for name in names:
        torch.manual_seed(0)  # as where the tests themselves are collected: see tests/conftest.py
        modules.append(importlib.import_module(name))
    found = [trial for module in modules for trial in getattr(module, "TRIALS", ())]
    return [trial for trial in found if claims_of(trial.subject.fn).own]
