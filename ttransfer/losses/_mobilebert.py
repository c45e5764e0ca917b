"""What a narrow transformer takes from the layers of one as deep, as MobileBERT does."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import divergence, wide
from ttransfer.losses._check import want_alike, want_variant
from ttransfer.losses._tokens import masked_mean, masked_square, tokens, want_mask


@claims(
    coupled=False,
    count=tokens,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    double_backward=True,
)
def mobilebert_attention(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Divergence of the student's attention from the teacher's.

    .. math::
        \frac{1}{h \sum_i m_i} \sum_{i, a} \sum_{p \text{ valid}} \mathrm{KL}\bigl(
        \mathrm{softmax}_q(T_{iapq}) \,\|\, \mathrm{softmax}_q(S_{iapq}) \bigr)

    Softmax is over valid tokens q, the mean over examples, the h heads, and valid tokens p.

    Args:
        student: scores before the softmax, (n, heads, tokens, tokens), or without heads.
        teacher: scores of the same shape; get no gradient.
        mask: (n, tokens), not 0 where a token is valid; None if all are.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        TransferError: for shapes that differ, scores that are not square, or a mask that does not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
        >>> round(tt.losses.mobilebert_attention(student, teacher).item(), 4)  # log 2 - entropy of softmax(1, 0)
        0.1109

    Checked against:
        A loop from the paper.

    Peers:
        The authors' code has the cross-entropy, of the same gradient but not 0 at equality, and counts padded tokens
        in the mean.

    References:
        Zhiqing Sun, Hongkun Yu, Xiaodan Song, Renjie Liu, Yiming Yang, Denny Zhou.
        MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices. 2020.
    """
    want_alike("mobilebert_attention", rank=3, student=student, teacher=teacher)
    if student.shape[-1] != student.shape[-2]:
        raise TransferError(
            f"mobilebert_attention: wanted scores (n, heads, tokens, tokens), got student {shown(student)}"
        )
    want_mask("mobilebert_attention", student, mask)
    s, t = wide(student, teacher.detach())
    if mask is None:
        return divergence(s, t, -1).mean().to(student.dtype)
    kept = (mask != 0).reshape(mask.shape[0], *[1] * (student.ndim - 3), mask.shape[1])
    keys = kept[..., None, :]
    # Low enough to have no part in any softmax, and finite, so that no gradient is inf - inf.
    lowest = torch.finfo(s.dtype).min / 4
    log_s, log_t = (torch.where(keys, x, lowest).log_softmax(-1) for x in (s, t))
    rows = torch.where(keys, log_t.exp() * (log_t - log_s), 0).sum(-1)
    return masked_mean(rows, kept).to(student.dtype)


@claims(coupled=False, count=tokens, zero_at_equality=True, non_negative=True, symmetric=True)
def mobilebert_hidden(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    mean_weight: float | Tensor = 50.0,
    variance_weight: float | Tensor = 0.05,
    variant: Literal["paper", "code"] = "paper",
) -> Tensor:
    r"""Feature map transfer: mean squared difference of a layer's outputs.

    .. math:: \frac{1}{d \sum_i m_i} \sum_i \sum_{p \text{ valid}} \| S_{ip} - T_{ip} \|^2

    In words, `variant="code"` differs so: each token's state has its own mean and variance taken off on both
    sides before the difference, as layer normalisation without weights does, and what was taken off is compared
    apart: plus `mean_weight` times the mean squared difference of the means and `variance_weight` times the mean
    absolute difference of the variances. The weights are those of the authors' command line, over that of the
    first part (5000 and 5 over 100).

    Args:
        student: outputs of a layer, (n, tokens, d).
        teacher: outputs of the layer of the same number, of the same shape; get no gradient.
        mask: (n, tokens), not 0 where a token is valid; None if all are.
        mean_weight: of the tokens' means, in "code".
        variance_weight: of the tokens' variances, in "code".
        variant: "paper" is the equation, "code" its decomposition that the paper speaks of and the authors train.

    Returns:
        A scalar, at least 0, a mean over valid tokens and widths; for "paper" in the squared units of the features.

    Raises:
        TransferError: for shapes that differ, a mask that does not fit, or an unknown variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[3.0, 1.0]]])
        >>> tt.losses.mobilebert_hidden(student, teacher).item()
        1.0
        >>> tt.losses.mobilebert_hidden(student, teacher, variant="code").item()  # 50 (1 - 2)²
        50.0

    Checked against:
        `F.mse_loss` and `F.layer_norm` without a mask, and a loop.

    Peers:
        The authors' code takes the teacher's means and variances of all layers at once, for each layer anew, by the
        list where the layer is meant; and matches padded tokens too.

    References:
        Zhiqing Sun, Hongkun Yu, Xiaodan Song, Renjie Liu, Yiming Yang, Denny Zhou.
        MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices. 2020.
    """
    want_variant("mobilebert_hidden", variant)
    want_alike("mobilebert_hidden", rank=3, student=student, teacher=teacher)
    want_mask("mobilebert_hidden", student, mask)
    s, t = wide(student, teacher.detach())
    valid = None if mask is None else (mask != 0)[..., None]
    if variant == "paper":
        return masked_square(s, t, valid).to(student.dtype)
    (s, s_mean, s_variance), (t, t_mean, t_variance) = _normalised(s), _normalised(t)
    loss = masked_square(s, t, valid)
    loss = loss + mean_weight * masked_square(s_mean, t_mean, valid)
    return (loss + variance_weight * masked_mean((s_variance - t_variance).abs(), valid)).to(student.dtype)


def _normalised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    variance = centred.square().mean(-1, keepdim=True)
    # The eps of the TensorFlow layer that the authors use.
    return centred * (variance + 1e-12).rsqrt(), mean, variance
