"""Gaussian kernels of several widths, which the discrepancies of mean embeddings share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.align._check import in_range
from ttransfer.align._distances import squared_distances

__all__ = ["SCALES", "Bandwidth", "gram", "kernel", "lifted", "mean_square", "off_diagonal_mean", "squared_width"]

Bandwidth = float | Tensor | Callable[[Tensor, Tensor], Tensor] | None
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


def squared_width(
    called: str, source: Tensor, target: Tensor, bandwidth: Bandwidth, scales: Sequence[float]
) -> Tensor | float:
    """Return σ²: of the width given, of what it makes of both domains, or the mean squared distance.

    Raises:
        TransferError: for no scales.
    """
    if len(scales) == 0:
        raise TransferError(f"{called}: wanted at least one scale, got {scales!r}")
    for i, scale in enumerate(scales):
        in_range(called, **{f"scales[{i}]": cast(Any, scale)})
    if callable(bandwidth):
        bandwidth = bandwidth(source, target)
    in_range(called, bandwidth=bandwidth)
    return mean_square(torch.cat([source, target]).detach()) if bandwidth is None else bandwidth**2


def mean_square(rows: Tensor) -> Tensor:
    """The mean squared distance over pairs of two rows; 1 where all rows coincide."""
    # It is twice the total variance: no matrix is needed.
    variance = 2 * (rows - rows.mean(0)).square().sum() / max(rows.shape[0] - 1, 1)
    # Rows that coincide up to rounding have no scale; 1 keeps the kernel at 1 and its gradient finite.
    rounding = (8 * torch.finfo(rows.dtype).eps) ** 2 * rows.square().sum(1).mean()
    return torch.where(variance <= rounding, 1.0, variance)


def kernel(squared: Tensor, variance: Tensor | float, scales: Sequence[float]) -> Tensor:
    """The sum over the scales of Gaussians of squared distances."""
    # Added one by one: a stack of them would be written out once more.
    return functools.reduce(torch.add, [(squared / (-2 * scale * variance)).exp() for scale in scales])


def gram(x: Tensor, y: Tensor, variance: Tensor | float, scales: Sequence[float]) -> Tensor:
    """The kernel between all rows of x and all rows of y, (n, m)."""
    return kernel(squared_distances(x, y), variance, scales)


def off_diagonal_mean(matrix: Tensor) -> Tensor:
    """The mean of a square matrix without its diagonal."""
    n = matrix.shape[0]
    return (matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))


def lifted(value: Tensor) -> Tensor:
    """What is not negative but for rounding: the value is lifted to 0, the gradient stays."""
    return value - value.detach().clamp_max(0)
