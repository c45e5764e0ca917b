"""Correlation alignment: second moments."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer.align._check import features


@claims(coupled=True)
def coral(source: Tensor, target: Tensor) -> Tensor:
    r"""Squared distance between the covariances of two domains.

    .. math:: \frac{1}{4 d^2} \| C_s - C_t \|_F^2

    C is the unbiased covariance (divided by n - 1). Means are not compared: a shift between the domains
    costs nothing. Some implementations drop the 4 and add a distance between the means; this one is the paper's.

    Args:
        source: features (n, d), n >= 2.
        target: features (m, d), m >= 2; m need not be n.

    Returns:
        A scalar, at least 0, in the fourth power of the features' units.

    Raises:
        TransferError: for maps, for widths that differ, for a domain of one row.

    Example:
        >>> import torch, ttransfer as tt
        >>> source = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # covariance diag(2, 0)
        >>> tt.align.coral(source, torch.zeros(3, 2)).item()
        0.25

    References:
        Baochen Sun, Kate Saenko. Deep CORAL: Correlation Alignment for Deep Domain Adaptation. 2016.
    """
    s, t = features("coral", source, target, rows=2)
    gap = (_covariance(s) - _covariance(t)) / (2 * s.shape[1])
    return gap.square().sum().to(torch.promote_types(source.dtype, target.dtype))


def _covariance(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x.mT @ x / (x.shape[0] - 1)
