"""Double sums over pairs of rows in blocks: memory grows with the rows, not with their square."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttransfer.align._check import whole
from ttransfer.align._distances import squared_distances

__all__ = ["chunked"]


def chunked(
    called: str,
    source: Tensor,
    target: Tensor,
    variance: Tensor | float,
    scales: Sequence[float],
    chunk: int,
    weights: tuple[float, float, float],
) -> Tensor:
    """Kernels summed over pairs: a of the source, b of the target, less twice c between both, weighted.

    The gradient is written out and handed to autograd as a linear form, so that no block is kept for it. There
    is therefore no second derivative: it is 0.

    Args:
        called: the function to name in an error.
        source: (n, d).
        target: (m, d).
        variance: σ²; gets a gradient if it is a tensor.
        scales: of the kernels.
        chunk: rows in a block; a block has n + m columns.
        weights: (a, b, c).

    Raises:
        TransferError: for a chunk below 1.
    """
    whole(called, 1, chunk=chunk)
    n, (a, b, c) = source.shape[0], weights
    rows = torch.cat([source, target])
    fixed = rows.detach()
    fixed = fixed - fixed.mean(0)
    width = variance.detach() if isinstance(variance, Tensor) else variance
    value = by_width = fixed.new_zeros(())
    by_rows: list[Tensor] = []
    for part, by_source, by_target in ((fixed[:n], a, -c), (fixed[n:], -c, b)):
        share = torch.cat([torch.full_like(fixed[:n, 0], by_source), torch.full_like(fixed[n:, 0], by_target)])
        for block in part.split(chunk):
            squared = squared_distances(block, fixed)
            gaussians = [(squared / (-2 * scale * width)).exp() for scale in scales]
            value = value + (sum(gaussians[1:], gaussians[0]) @ share).sum()
            slopes = [one / scale for one, scale in zip(gaussians, scales, strict=True)]
            pull = sum(slopes[1:], slopes[0]) * share
            by_rows.append(-2 / width * (pull.sum(1, keepdim=True) * block - pull @ fixed))
            by_width = by_width + (pull * squared).sum()
    value = value + (torch.cat(by_rows) * (rows - rows.detach())).sum()
    if isinstance(variance, Tensor):
        value = value + by_width / (2 * width**2) * (variance - width)
    return value
