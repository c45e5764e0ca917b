"""Adversarial alignment in which some items count more than others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer._numeric import entropies, wide
from ttransfer.align._check import items, one_logit, want_logits, want_tensors

__all__ = ["entropy_weights", "weighted_domain_adversarial"]

_TAGS: dict[str, Any] = {"non_negative": True, "row_symmetric": True, "repeat_invariant": True, "double_backward": True}


def entropy_weights(logits: Tensor) -> Tensor:
    r"""Weights of CDAN+E: from nearly 1 for rows that could be any class to 2 for sure ones.

    .. math:: w_i = 1 + e^{-H_i}, \qquad H_i = -\sum_c p_{ic} \log p_{ic}, \quad p_i = \mathrm{softmax}(z_i)

    They get gradients; detach them where they should only weigh.

    Args:
        logits: (n, classes).

    Returns:
        (n,), from 1 + 1/classes to 2.

    Raises:
        TransferError: if the shape is not that of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.entropy_weights(torch.tensor([[0.0, 0.0], [100.0, 0.0]]))
        tensor([1.5000, 2.0000])

    Checked against:
        pytorch-adapt's EntropyWeights before its normaliser.

    References:
        Mingsheng Long, Zhangjie Cao, Jianmin Wang, Michael I. Jordan.
        Conditional Adversarial Domain Adaptation. 2018.
    """
    want_logits("entropy_weights", logits=logits)
    (z,) = wide(logits)
    return (1 + (-entropies(z)).exp()).to(logits.dtype)


@claims(coupled=True, **_TAGS)  # the halves weigh the same, whatever share of the rows a domain has
def weighted_domain_adversarial(
    source_logits: Tensor, target_logits: Tensor, source_weights: Tensor, target_weights: Tensor
) -> Tensor:
    r"""Binary cross-entropy of a domain critic, each row by its weight: source is 1, target is 0.

    .. math:: \frac12 \Bigl[ -\frac1n \sum_i w_i \log \sigma(s_i)
        - \frac1m \sum_j v_j \log \bigl(1 - \sigma(t_j)\bigr) \Bigr]

    With all weights 1 it is `domain_adversarial`. The weights are not normalised; for weights of mean 1 divide
    them by their mean. The critic minimises this; the features maximise it when `gradient_reversal` stands before
    the critic.

    Args:
        source_logits: one logit per item: (n,), (n, 1), tokens (n, tokens, 1) or a map (n, 1, h, w). A row of
            several counts as their mean.
        target_logits: the same for m items.
        source_weights: (n,), at least 0; they get gradients.
        target_weights: (m,).

    Returns:
        A scalar in nats, at least 0.

    Raises:
        TransferError: for more than one logit per item, or weights that are not one for each row.

    Example:
        >>> import torch, ttransfer as tt
        >>> zeros, ones = torch.zeros(2, 1), torch.ones(2)
        >>> round(tt.align.weighted_domain_adversarial(zeros, zeros, 3 * ones, ones).item(), 4)  # 2 log 2
        1.3863

    Checked against:
        A loop, and torch's binary cross-entropy with weights.

    Peers:
        TLlib has it inside CDAN+E, PADA and IWAN, after a sigmoid: in float32 a logit of 18 on the wrong side costs
        100, where torch's BCELoss clamps.

    References:
        Mingsheng Long, Zhangjie Cao, Jianmin Wang, Michael I. Jordan.
        Conditional Adversarial Domain Adaptation. 2018.
    """
    called = "weighted_domain_adversarial"
    one_logit(called, source=source_logits, target=target_logits)
    want_tensors(called, source_weights=source_weights, target_weights=target_weights)
    for logits, weights in ((source_logits, source_weights), (target_logits, target_weights)):
        if weights.shape != logits.shape[:1] or not weights.is_floating_point():
            raise TransferError(
                f"{called}: wanted a weight for each row, got "
                + items(source=source_logits, target=target_logits)
                + f" with weights {items(source=source_weights, target=target_weights)}"
            )
    s, t, w, v = wide(source_logits, target_logits, source_weights, target_weights)
    value = 0.5 * ((w * _by_row(F.softplus(-s))).mean() + (v * _by_row(F.softplus(t))).mean())
    return value.to(torch.promote_types(source_logits.dtype, target_logits.dtype))


def _by_row(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1) if x.ndim > 1 else x
