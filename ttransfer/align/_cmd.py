"""Central moments of each feature, order by order."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import root
from ttransfer.align._check import features, in_range, whole

__all__ = ["cmd"]


@claims(coupled=True, zero_at_equality=True, non_negative=True, symmetric=True, repeat_invariant=True)
def cmd(source: Tensor, target: Tensor, *, moments: int = 5, span: float | Tensor = 1.0) -> Tensor:
    r"""Central moment discrepancy: distances of the means and of each feature's central moments.

    .. math:: \frac{1}{b - a} \| \bar s - \bar t \| + \sum_{k=2}^K \frac{1}{(b - a)^k}
        \Bigl\| \frac1n \sum_i (s_i - \bar s)^k - \frac1m \sum_j (t_j - \bar t)^k \Bigr\|

    Powers are of each feature by itself: how features go together is not seen. Features lie between a and b, as those
    of a sigmoid or a tanh do; without bounds the higher moments outweigh all others. The distances are no squares, so
    that the gradient does not fade where the domains are near each other.

    Args:
        source: features (n, d), best of a bounded activation.
        target: features (m, d); m need not be n.
        moments: K, the highest order; 1 compares the means alone.
        span: b - a, in the features' units: 1 for a sigmoid, 2 for a tanh.

    Returns:
        A scalar without unit, at least 0.

    Raises:
        TransferError: for maps, for widths that differ, for no rows; for fewer than one moment, or a span that is not
            above 0.

    Example:
        >>> import torch, ttransfer as tt
        >>> source, target = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [0.5]])
        >>> tt.align.cmd(source, target).item()  # 0 + 1/4 + 0 + 1/16 + 0
        0.3125

    Checked against:
        SciPy's central moments, and a loop.

    Peers:
        Copies in other projects leave the span out, whatever the activation: for a tanh the fifth moment then counts
        32 times as much.

    References:
        Werner Zellinger, Thomas Grubinger, Edwin Lughofer, Thomas Natschläger, Susanne Saminger-Platz.
        Central Moment Discrepancy (CMD) for Domain-Invariant Representation Learning. 2017.
    """
    s, t = features("cmd", source, target, rows=1)
    whole("cmd", 1, moments=moments)
    in_range("cmd", span=span)
    s, t = s / span, t / span
    means = s.mean(0), t.mean(0)
    s, t = s - means[0], t - means[1]
    value = _length(means[0] - means[1])
    power, other = s, t
    for _ in range(2, moments + 1):
        power, other = power * s, other * t
        value = value + _length(power.mean(0) - other.mean(0))
    return value.to(torch.promote_types(source.dtype, target.dtype))


def _length(x: Tensor) -> Tensor:
    return root(x.square().sum())
