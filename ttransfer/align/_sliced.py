"""Sliced Wasserstein distance: transport along lines."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer._numeric import unit
from ttransfer.align._check import features, items, want_tensors

__all__ = ["sliced_wasserstein"]


@claims(coupled=True, detaches=("directions",), zero_at_equality=True, non_negative=True, repeat_invariant=True)
def sliced_wasserstein(source: Tensor, target: Tensor, directions: Tensor) -> Tensor:
    r"""Squared Wasserstein distance of the domains' projections, in the mean over lines.

    .. math::
        \frac1k \sum_{l=1}^k \int_0^1 \bigl( F^{-1}_{s \theta_l}(q) - F^{-1}_{t \theta_l}(q) \bigr)^2 \, dq, \qquad
        \theta_l = \frac{d_l}{\|d_l\|}

    The inverses of distribution functions are step functions of the sorted projections, so that for n = m it is the
    mean squared difference of these. Draw directions anew at each step, of normal numbers, whose directions are
    uniform: ``tt.normal(keys[:1], d, k)[0]``, as `tt.terms.sliced_wasserstein` does.

    Args:
        source: features (n, d), or predicted probabilities, for which it was made.
        target: features (m, d); m need not be n.
        directions: (d, k), of any lengths above 0; they get no gradient.

    Returns:
        A scalar, at least 0, in the square of the features' units.

    Raises:
        TransferError: for maps, for widths that differ, for no rows, for directions of another width.

    Example:
        >>> import torch, ttransfer as tt
        >>> source, target = torch.tensor([[0.0, 5.0], [2.0, 5.0]]), torch.tensor([[1.0, 5.0]])
        >>> tt.align.sliced_wasserstein(source, target, torch.eye(2)).item()  # (1 + 0) / 2
        0.5

    Checked against:
        POT's sliced_wasserstein_distance (its square), and SciPy's linear programme along each line.

    Peers:
        POT has the root. pytorch-adapt's SlicedWasserstein draws 128 directions whatever number it is told, from the
        global generator, and wants n = m.

    References:
        Chen-Yu Lee, Tanmay Batra, Mohammad Haris Baig, Daniel Ulbricht.
        Sliced Wasserstein Discrepancy for Unsupervised Domain Adaptation. 2019.
        Nicolas Bonneel, Julien Rabin, Gabriel Peyré, Hanspeter Pfister.
        Sliced and Radon Wasserstein Barycenters of Measures. 2015.
    """
    s, t = features("sliced_wasserstein", source, target, rows=1)
    want_tensors("sliced_wasserstein", directions=directions)
    if directions.ndim != 2 or directions.shape[0] != s.shape[1] or not directions.is_floating_point():
        raise TransferError(
            "sliced_wasserstein: wanted directions (d, k), got "
            + items(source=source, target=target, directions=directions)
        )
    lines = unit(directions.detach().to(s.dtype), 0)
    gap, width = _quantiles(s @ lines, t @ lines)
    value = (gap.square().mean(1) * width).sum()
    return value.to(torch.promote_types(source.dtype, target.dtype))


def _quantiles(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between the inverse distribution functions, and the lengths of the steps on which they hold."""
    x, y = x.sort(0).values, y.sort(0).values
    n, m = x.shape[0], y.shape[0]
    # Where either function steps, in parts of 1 / (n m): whole numbers, so that steps which meet have length 0.
    ends = torch.cat([torch.arange(1, n + 1, device=x.device) * m, torch.arange(1, m + 1, device=x.device) * n])
    ends = ends.sort().values
    starts = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])
    # Of an empty last step the start is the end of the range.
    first, other = (starts // m).clamp_max(n - 1), (starts // n).clamp_max(m - 1)
    return x[first] - y[other], (ends - starts).to(x.dtype) / (n * m)
