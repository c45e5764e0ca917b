"""Sure of each row, diverse over the batch: what unlabelled predictions should be."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import entropies, wide
from ttransfer.align._check import want_logits

__all__ = ["diversity", "infomax"]

_TAGS: dict[str, Any] = {
    "row_symmetric": True,
    "repeat_invariant": True,
    "class_symmetric": True,
    "shift_invariant": True,
    "double_backward": True,
}


@claims(coupled=True, **_TAGS)
def diversity(logits: Tensor) -> Tensor:
    r"""The negative entropy of the mean prediction: low where the batch has all classes alike.

    .. math:: \sum_c \bar p_c \log \bar p_c, \qquad \bar p = \frac1n \sum_i \mathrm{softmax}(z_i)

    Args:
        logits: (n, classes), or (n, classes, ...) with a prediction for each position.

    Returns:
        A scalar in nats, at most 0 and at least minus the logarithm of the number of classes.

    Raises:
        TransferError: for what are no logits of at least two classes.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.align.diversity(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])).item(), 4)  # -log 2
        -0.6931

    Checked against:
        pytorch-adapt's DiversityLoss, and SciPy's entropy.

    Peers:
        pytorch-adapt has it; it adds 1e-7 (in float32) inside the logarithm. The paper writes it as the divergence from
        equal shares, which is larger by the logarithm of the number of classes.

    References:
        Jian Liang, Dapeng Hu, Jiashi Feng. Do We Really Need to Access the Source Data?
        Source Hypothesis Transfer for Unsupervised Domain Adaptation. 2020.
    """
    want_logits("diversity", logits=logits)
    (z,) = wide(logits)
    log_p = z.log_softmax(1).movedim(1, 0).flatten(1)
    log_mean = log_p.logsumexp(1) - math.log(log_p.shape[1])
    return (log_mean.exp() * log_mean).sum().to(logits.dtype)


@claims(coupled=True, **_TAGS)
def infomax(logits: Tensor) -> Tensor:
    r"""Information maximisation: each prediction sure, all classes predicted.

    .. math:: \frac1n \sum_i H(p_i) - H \Bigl( \frac1n \sum_i p_i \Bigr), \qquad H(p) = -\sum_c p_c \log p_c

    `entropy` plus `diversity`: the negative mutual information of row and class.

    Args:
        logits: (n, classes), or (n, classes, ...) with a prediction for each position.

    Returns:
        A scalar in nats, at most 0 and at least minus the logarithm of the number of classes.

    Raises:
        TransferError: for what are no logits of at least two classes.

    Example:
        >>> import torch, ttransfer as tt
        >>> logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
        >>> round(tt.align.infomax(logits).item(), 4), tt.align.infomax(logits[:1]).item()  # -log 2, 0
        (-0.6931, 0.0)

    Checked against:
        pytorch-adapt's EntropyLoss and DiversityLoss, and SciPy's entropy.

    Peers:
        The authors' code adds 1e-5 to probabilities inside both logarithms. The paper adds a loss by pseudo-labels.

    References:
        Jian Liang, Dapeng Hu, Jiashi Feng. Do We Really Need to Access the Source Data?
        Source Hypothesis Transfer for Unsupervised Domain Adaptation. 2020.
        Andreas Krause, Pietro Perona, Ryan Gomes. Discriminative Clustering by Regularized Information
        Maximization. 2010.
    """
    want_logits("infomax", logits=logits)
    (z,) = wide(logits)
    return (entropies(z).mean() + diversity(z)).to(logits.dtype)
