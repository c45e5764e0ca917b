"""Comparing trees of tensors."""

from __future__ import annotations

from typing import Any

import torch

from ttransfer.core import _tree as tree


def worst(one: Any, other: Any) -> float:
    """The largest absolute difference between two trees of one structure."""
    a, b = tree.paths(one), tree.paths(other)
    assert list(a) == list(b)
    gaps = [0.0]
    for path, x in a.items():
        y = b[path]
        assert x.shape == y.shape, path
        assert x.dtype == y.dtype, path
        if not x.numel():
            continue
        gap = (x.to(torch.float64) - y.to(torch.float64)).abs().max().item()
        assert gap == gap, path
        gaps.append(gap)
    return max(gaps)


def copied(state: Any) -> Any:
    """A copy that shares nothing."""
    return tree.map(torch.clone, state)
