"""Weights for a target that lacks some of the source's classes, and a loss for one that has others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import log_other, wide
from ttransfer.align._check import in_range, one_logit, want_logits

__all__ = ["class_weights", "importance_weights", "osbp"]


def class_weights(target_logits: Tensor, *, temperature: float | Tensor = 0.1) -> Tensor:
    r"""Weights of the source's classes by how often the target is taken for them: those of PADA.

    .. math:: \gamma_c = \frac{m_c}{\max_k m_k}, \qquad m = \frac1m \sum_j \mathrm{softmax}(t_j / T)

    Without gradient. They come from a batch; `tt.terms.pada` averages over steps.

    Args:
        target_logits: (m, classes).
        temperature: T > 0. The paper has 1; 0.1, as TLlib has, counts mere suspicions less.

    Returns:
        (classes,), from 0 to 1; the largest is 1.

    Raises:
        TransferError: if the shape is not that of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> x = torch.tensor([[9.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
        >>> tt.align.class_weights(x).round(decimals=4)
        tensor([1.0000, 0.5000, 0.0000])

    Checked against:
        A loop.

    References:
        Zhangjie Cao, Lijia Ma, Mingsheng Long, Jianmin Wang. Partial Adversarial Domain Adaptation. 2018.
    """
    want_logits("class_weights", logits=target_logits)
    in_range("class_weights", temperature=temperature)
    (z,) = wide(target_logits.detach())
    mean = (z / temperature).softmax(1).transpose(0, 1).flatten(1).mean(1)
    return (mean / mean.amax()).to(target_logits.dtype)


def importance_weights(source_logits: Tensor) -> Tensor:
    r"""Weights of source rows by how like the target a critic finds them: those of IWAN.

    .. math:: w_i = \frac{\sigma(-s_i)}{\frac1n \sum_k \sigma(-s_k)}

    Without gradient. Rows of classes that the target lacks are sure to be source, and hardly count.

    Args:
        source_logits: a critic's logit of each source row, source being 1: (n,) or (n, 1).

    Returns:
        (n,), at least 0, of mean 1.

    Raises:
        TransferError: for more than one logit per row.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.importance_weights(torch.tensor([0.0, 0.0, 100.0])).round(decimals=4)
        tensor([1.5000, 1.5000, 0.0000])

    Checked against:
        A loop.

    Peers:
        TLlib adds 1e-5 to the mean: at logits of 20, where the critic is sure of all rows, its weights are 1e-4 of what
        they should be.

    References:
        Jing Zhang, Zewei Ding, Wanqing Li, Philip Ogunbona.
        Importance Weighted Adversarial Nets for Partial Domain Adaptation. 2018.
    """
    one_logit("importance_weights", source=source_logits)
    (s,) = wide(source_logits.detach())
    # As a softmax of logarithms: where a critic is sure of all rows, they still differ.
    rows = F.logsigmoid(-s).flatten(1).mean(1) if s.ndim > 1 else F.logsigmoid(-s)
    return (rows.softmax(0) * rows.shape[0]).to(source_logits.dtype)


@claims(
    coupled=False,
    non_negative=True,
    shift_invariant=True,
    row_symmetric=True,
    repeat_invariant=True,
    double_backward=True,
)
def osbp(target_logits: Tensor, *, threshold: float | Tensor = 0.5) -> Tensor:
    r"""Open-set adaptation: half unknown is what a classifier makes of every target row.

    .. math:: -\frac1m \sum_j \bigl[ t \log p_{jC} + (1 - t) \log (1 - p_{jC}) \bigr], \qquad
        p = \mathrm{softmax}(z)

    The last class stands for all that the source does not have. The classifier minimises this, so that its probability
    is t; the features maximise it and so take every row to one side or the other: see `tt.terms.osbp`.

    Args:
        target_logits: (m, classes + 1) or maps (m, classes + 1, ...), the unknown class last.
        threshold: t, from 0 to 1.

    Returns:
        A scalar in nats, at least the entropy of t: log 2 for a half.

    Raises:
        TransferError: if the shape is not that of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.align.osbp(torch.zeros(3, 2)).item(), 4)  # log 2
        0.6931

    Checked against:
        A loop, and torch's binary cross-entropy of the probability.

    Peers:
        TLlib has it, after a softmax: where the unknown class is sure, there is no gradient.

    References:
        Kuniaki Saito, Shohei Yamamoto, Yoshitaka Ushiku, Tatsuya Harada.
        Open Set Domain Adaptation by Backpropagation. 2018.
    """
    want_logits("osbp", logits=target_logits)
    in_range("osbp", 0.0, 1.0, closed=True, threshold=threshold)
    (z,) = wide(target_logits)
    unknown = torch.full_like(z[:, 0], z.shape[1] - 1, dtype=torch.int64)
    value = threshold * z.log_softmax(1)[:, -1] + (1 - threshold) * log_other(z, unknown)
    return -value.mean().to(target_logits.dtype)
