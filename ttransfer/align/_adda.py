"""Losses that fool a domain critic without reversing its gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import wide
from ttransfer.align._check import one_logit

__all__ = ["adda", "domain_confusion"]


@claims(coupled=False, non_negative=True, row_symmetric=True, repeat_invariant=True, double_backward=True)
def adda(target_logits: Tensor) -> Tensor:
    r"""What the target's encoder minimises in ADDA: the critic should take target for source.

    .. math:: -\frac1m \sum_j \log \sigma(t_j)

    The critic minimises `domain_adversarial`, in turn. Unlike a reversed gradient this one does not vanish
    where the critic is sure: the labels are inverted, not the loss.

    Args:
        target_logits: the critic's logit of each target item, source being 1: (m,), (m, 1), tokens (m, tokens, 1) or a
            map (m, 1, h, w).

    Returns:
        A scalar in nats, at least 0; log 2 where the critic cannot tell.

    Raises:
        TransferError: for more than one logit per item.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.align.adda(torch.zeros(2, 1)).item(), 4)  # log 2
        0.6931

    Checked against:
        torch's binary cross-entropy, and a loop.

    Peers:
        pytorch-adapt, ADAPT and TLlib have it.

    References:
        Eric Tzeng, Judy Hoffman, Kate Saenko, Trevor Darrell.
        Adversarial Discriminative Domain Adaptation. 2017.
    """
    one_logit("adda", target=target_logits)
    (t,) = wide(target_logits)
    return F.softplus(-t).mean().to(target_logits.dtype)


@claims(coupled=True, non_negative=True, row_symmetric=True, repeat_invariant=True, double_backward=True)
def domain_confusion(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    r"""Cross-entropy of a domain critic with a label that is half source, half target.

    .. math:: \frac12 \Bigl[ \frac1n \sum_i c(s_i) + \frac1m \sum_j c(t_j) \Bigr], \qquad
        c(z) = -\tfrac12 \log \sigma(z) - \tfrac12 \log \sigma(-z)

    Features minimise it, in turn with a critic that minimises `domain_adversarial`. Lowest, log 2, where the critic
    cannot tell. The paper sums over the items of both domains; here each domain has half the weight.

    Args:
        source_logits: one logit per item: (n,), (n, 1), tokens (n, tokens, 1) or a map (n, 1, h, w).
        target_logits: the same for m items.

    Returns:
        A scalar in nats, at least log 2.

    Raises:
        TransferError: for more than one logit per item.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.align.domain_confusion(torch.zeros(3, 1), torch.zeros(2, 1)).item(), 4)  # log 2
        0.6931

    Checked against:
        pytorch-adapt's UniformDistributionLoss of the logits (z, 0), and a loop.

    Peers:
        pytorch-adapt has it, for critics with a logit for each domain.

    References:
        Eric Tzeng, Judy Hoffman, Trevor Darrell, Kate Saenko.
        Simultaneous Deep Transfer Across Domains and Tasks. 2015.
    """
    one_logit("domain_confusion", source=source_logits, target=target_logits)
    s, t = wide(source_logits, target_logits)
    value = 0.5 * (_even(s) + _even(t))
    return value.to(torch.promote_types(source_logits.dtype, target_logits.dtype))


def _even(z: Tensor) -> Tensor:
    """The mean of softplus(z) and softplus(-z)."""
    return (F.softplus(z) - z / 2).mean()
