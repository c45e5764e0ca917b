"""Widths of kernels from the data."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer.align._check import features
from ttransfer.align._distances import squared_distances
from ttransfer.align._kernels import mean_square

__all__ = ["median_bandwidth"]


def median_bandwidth(source: Tensor, target: Tensor) -> Tensor:
    r"""Median of the distances between rows of the pooled batch: a width for Gaussian kernels.

    .. math:: \sigma = \mathrm{median} \{ \|z_i - z_j\| : i < j \}, \qquad z = (s_1 \dots s_n, t_1 \dots t_m)

    Of an even number of pairs the lower one of the two in the middle. Where more than half of the pairs coincide
    it is the root of the mean squared distance, and where all do it is 1. Time and memory grow with (n + m)².

    Args:
        source: features (n, d).
        target: features (m, d); m need not be n.

    Returns:
        A scalar above 0 in the features' units; it has no gradient. The function itself can be given as the
        `bandwidth` of `mmd` and its kin.

    Raises:
        TransferError: for maps, for widths that differ, for no rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> source, target = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])
        >>> tt.align.median_bandwidth(source, target)  # of 1, 2, 3
        tensor(2.)
        >>> term = tt.term(tt.align.mmd, "a(x)", "a(y)", bandwidth=tt.align.median_bandwidth)

    Checked against:
        SciPy's distances and NumPy's partition.

    Peers:
        pytorch-adapt takes the median of squared distances within the source, an example's to itself among them, as
        2σ²; skada that of distances within the source. Neither sees how far the domains are apart, and both divide
        by 0 where half of the source coincides (skada by 1e-7).

    References:
        Arthur Gretton, Karsten M. Borgwardt, Malte J. Rasch, Bernhard Schölkopf, Alexander Smola.
        A Kernel Two-Sample Test. 2012.
    """
    s, t = features("median_bandwidth", source, target, rows=1)
    rows = torch.cat([s, t]).detach()
    n = rows.shape[0]
    squared = squared_distances(rows, rows)
    # Sorted last to first to be cut, the diagonal comes first, and every pair twice.
    itself = torch.eye(n, dtype=torch.bool, device=rows.device)
    pairs = torch.where(itself, -1, squared).flatten().sort().values[n:]
    median = pairs[(n * (n - 1) // 2 - 1) // 2 * 2]
    rounding = 8 * torch.finfo(rows.dtype).eps * (rows - rows.mean(0)).square().sum(1).amax()
    width = torch.where(median <= rounding, mean_square(rows), median).sqrt()
    return width.to(torch.promote_types(source.dtype, target.dtype))
