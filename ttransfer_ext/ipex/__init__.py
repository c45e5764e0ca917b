"""Intel's extension for PyTorch as a compiler of steps: ``tt.compile(step, backend="ipex")``."""

from __future__ import annotations

from ttransfer_ext.ipex._compiler import compiler
from ttransfer_ext.ipex._gradients import RESTORED, restore_gradients
from ttransfer_ext.ipex._versions import WANTED, check_versions

__all__ = ["RESTORED", "WANTED", "check_versions", "compiler", "restore_gradients"]
