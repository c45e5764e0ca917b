"""Correlation alignment: second moments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer.align._check import features

__all__ = ["coral", "coral_mean"]


_TAGS: dict[str, Any] = {
    "zero_at_equality": True,
    "non_negative": True,
    "symmetric": True,
    "rotation_invariant": True,
    "double_backward": True,
}


@claims(coupled=True, **_TAGS)
def coral(source: Tensor, target: Tensor) -> Tensor:
    r"""Squared distance between the covariances of two domains.

    .. math:: \frac{1}{4 d^2} \| C_s - C_t \|_F^2

    C is the unbiased covariance (divided by n - 1). Means are not compared: a shift between the domains
    costs nothing; `coral_mean` compares them too.

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

    Checked against:
        A loop from the paper, pytorch-adapt's CORALLoss and skada's deepcoral_loss.

    Peers:
        pytorch-adapt and skada have it. TLlib and DomainBed have `coral_mean` under its name.

    References:
        Baochen Sun, Kate Saenko. Deep CORAL: Correlation Alignment for Deep Domain Adaptation. 2016.
    """
    s, t = features("coral", source, target, rows=2)
    gap = (_covariance(s) - _covariance(t)) / (2 * s.shape[1])
    return gap.square().sum().to(torch.promote_types(source.dtype, target.dtype))


@claims(coupled=True, **_TAGS)
def coral_mean(source: Tensor, target: Tensor) -> Tensor:
    r"""Squared distance between the covariances and between the means of two domains.

    .. math:: \frac1d \| \mu_s - \mu_t \|^2 + \frac{1}{d^2} \| C_s - C_t \|_F^2

    C is the unbiased covariance (divided by n - 1). No paper has it: it is what `coral` became in benchmarks of domain
    generalisation, which sum it over pairs of domains. Its second part is four times `coral`.

    Args:
        source: features (n, d), n >= 2.
        target: features (m, d), m >= 2; m need not be n.

    Returns:
        A scalar, at least 0: a sum of the square and the fourth power of the features' units.

    Raises:
        TransferError: for maps, for widths that differ, for a domain of one row.

    Example:
        >>> import torch, ttransfer as tt
        >>> source = torch.tensor([[2.0, 1.0], [0.0, 1.0]])  # mean (1, 1), covariance diag(2, 0)
        >>> tt.align.coral_mean(source, torch.zeros(3, 2)).item()
        2.0

    Checked against:
        A loop from the formula, and pytorch-adapt's CORALLoss for the second part.

    Peers:
        TLlib and DomainBed have it, under the name of CORAL.

    References:
        Ishaan Gulrajani, David Lopez-Paz. In Search of Lost Domain Generalization. 2021.
        Baochen Sun, Kate Saenko. Deep CORAL: Correlation Alignment for Deep Domain Adaptation. 2016.
    """
    s, t = features("coral_mean", source, target, rows=2)
    value = (s.mean(0) - t.mean(0)).square().mean() + (_covariance(s) - _covariance(t)).square().mean()
    return value.to(torch.promote_types(source.dtype, target.dtype))


def _covariance(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x.mT @ x / (x.shape[0] - 1)
