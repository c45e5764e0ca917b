"""The digits that scikit-learn carries, read without importing it: beside torch 2.8 it stands without what it needs."""

from __future__ import annotations

import functools
import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["digits"]


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 64) from 0 to 1, and labels (1797,)."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations  # make installs it
    with gzip.open(Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz") as file:
        rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    return rows[:, :64] / 16, rows[:, 64].long()
