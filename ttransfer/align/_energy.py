"""Energy distance: a kernel without a width."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer.align._check import features
from ttransfer.align._distances import distances
from ttransfer.align._kernels import lifted

__all__ = ["energy_distance"]


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    rotation_invariant=True,
    repeat_invariant=True,
)
def energy_distance(source: Tensor, target: Tensor) -> Tensor:
    r"""Twice the mean distance between the domains, less the mean distances within them.

    .. math::
        \frac{2}{nm} \sum_{i,j} \|s_i - t_j\| - \frac{1}{n^2} \sum_{i,j} \|s_i - s_j\|
        - \frac{1}{m^2} \sum_{i,j} \|t_i - t_j\|

    It is `mmd` with the kernel -‖x - y‖, which has no width to choose. The pairs of a row with itself stay in, so that
    it is 0 only for equal samples, and about (1/n + 1/m) mean distances for two samples of one distribution. A row
    gets no gradient from rows that it coincides with.

    Args:
        source: features (n, d).
        target: features (m, d); m need not be n.

    Returns:
        A scalar, at least 0, in the features' units.

    Raises:
        TransferError: for maps, for widths that differ, for no rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.energy_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0]])).item()  # 2 / 2 - 1 / 2
        0.5

    Checked against:
        A loop from the paper, SciPy's energy_distance (its square) in one dimension, and twice geomloss's "energy".

    Peers:
        geomloss has half of it; it takes rows that coincide, a row and itself too, to be 1e-4 apart.

    References:
        Gábor J. Székely, Maria L. Rizzo. Energy Statistics: A Class of Statistics Based on Distances. 2013.
    """
    s, t = features("energy_distance", source, target, rows=1)
    value = 2 * distances(s, t).mean() - distances(s, s).mean() - distances(t, t).mean()
    return lifted(value).to(torch.promote_types(source.dtype, target.dtype))
