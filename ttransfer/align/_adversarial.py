"""Adversarial alignment: a critic tells the domains apart, the features learn to fool it."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer.align._check import in_range, one_logit, want_tensors


def gradient_reversal(x: Tensor, scale: float | Tensor) -> Tensor:
    r"""Return x unchanged; its gradient comes back multiplied by -scale.

    Written with `detach`, so that it works in every mode. Derivatives of second order, and those with
    respect to `scale`, are zero: a meta-gradient does not pass.

    Args:
        x: of any shape.
        scale: a number, often a schedule that grows from 0.

    Returns:
        A tensor equal to `x`.

    Example:
        >>> import torch, ttransfer as tt
        >>> torch.func.grad(lambda x: tt.align.gradient_reversal(x, 0.5) * 3)(torch.tensor(2.0))
        tensor(-1.5000)

    References:
        Yaroslav Ganin, Evgeniya Ustinova, Hana Ajakan, Pascal Germain, Hugo Larochelle, François Laviolette,
        Mario Marchand, Victor Lempitsky. Domain-Adversarial Training of Neural Networks. 2016.
    """
    want_tensors("gradient_reversal", x=x)
    in_range("gradient_reversal", -math.inf, scale=scale)
    fixed = x.detach()
    return (fixed - scale * (x - fixed)).to(x.dtype)


@claims(coupled=True)  # the halves weigh the same, whatever share of the rows a domain has
def domain_adversarial(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    r"""Binary cross-entropy of a domain critic: source is 1, target is 0, half the weight each.

    .. math:: \frac12 \Bigl[ -\frac1n \sum_i \log \sigma(s_i) - \frac1m \sum_j \log \bigl(1 - \sigma(t_j)\bigr) \Bigr]

    This is what the critic minimises; the features maximise it when `gradient_reversal` stands before the critic.
    Equation 9 of the paper has no 1/2; its authors' code, which takes the mean over the rows of both domains, does.

    Args:
        source_logits: one logit per item: (n,), (n, 1), tokens (n, tokens, 1) or a map (n, 1, h, w).
        target_logits: the same for m items.

    Returns:
        A scalar in nats, at least 0; log 2 for a critic that cannot tell.

    Raises:
        TransferError: for more than one logit per item.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.align.domain_adversarial(torch.zeros(3, 1), torch.zeros(2, 1)).item(), 4)  # log 2
        0.6931

    Checked against:
        A loop.

    References:
        Yaroslav Ganin, Evgeniya Ustinova, Hana Ajakan, Pascal Germain, Hugo Larochelle, François Laviolette,
        Mario Marchand, Victor Lempitsky. Domain-Adversarial Training of Neural Networks. 2016.
    """
    one_logit("domain_adversarial", source=source_logits, target=target_logits)
    return -0.5 * (F.logsigmoid(source_logits).mean() + F.logsigmoid(-target_logits).mean())
