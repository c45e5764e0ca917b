"""Distances between all rows of one tensor and all rows of another."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._numeric import root

__all__ = ["distances", "squared_distances"]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances: (n, d), (m, d) -> (n, m), at least 0."""
    squared = _expanded(x, y)[0]
    # Rounding is lifted to 0 without clamping: at rows that coincide the second derivative would be lost.
    return squared - squared.detach().clamp_max(0)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Distances: (n, d), (m, d) -> (n, m). Rows that coincide have distance 0 and a slope of 0."""
    squared, sizes = _expanded(x, y)
    # What is left of rows that coincide is rounding.
    same = squared.detach() <= 8 * torch.finfo(x.dtype).eps * sizes.detach()
    return root(torch.where(same, 0, squared))


def _expanded(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances as they come, and the sums of squares of which they are differences."""
    # Distances do not see a shift, and ||x||² + ||y||² - 2xy cancels least where y has no mean.
    shift = y.detach().mean(0)
    x, y = x - shift, y - shift
    sizes = x.square().sum(1)[:, None] + y.square().sum(1)
    return sizes - 2 * x @ y.mT, sizes
