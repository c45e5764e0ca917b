"""What a small transformer takes from the layers of a large one, as TinyBERT does."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_alike
from ttransfer.losses._tokens import masked_square, tokens, want_mask


def _pairs(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor | int:
    """Count the pairs of valid tokens."""
    return student.shape[0] if mask is None else (mask != 0).sum(1).square().sum()


@claims(coupled=False, count=_pairs, zero_at_equality=True, non_negative=True, symmetric=True, double_backward=True)
def tinybert_attention(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Mean squared difference of attention scores before their softmax.

    .. math:: \frac{1}{\sum_i h m_i^2} \sum_{i, a} \sum_{p, q \text{ valid}} (S_{iapq} - T_{iapq})^2

    The mean is over examples, the h heads, and pairs of valid tokens. One layer with one; the sum over the pairs
    of layers is a term for each. Where the heads are of other numbers, choose some of the teacher's.

    Args:
        student: scores (n, heads, tokens, tokens), or without heads.
        teacher: scores of the same shape; get no gradient.
        mask: (n, tokens), not 0 where a token is valid; None if all are. What is masked counts nothing, and may
            be infinite.

    Returns:
        A scalar in the squared units of the scores, at least 0.

    Raises:
        TransferError: for shapes that differ, scores that are not square, or a mask that does not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(1, 1, 2, 2), torch.tensor([[[[2.0, -torch.inf], [0.0, -torch.inf]]]])
        >>> tt.losses.tinybert_attention(student, teacher, torch.tensor([[1, 0]])).item()
        4.0

    Checked against:
        A loop from the paper.

    Peers:
        The authors' code has no mask: scores below -100 on either side count as 0, and padding stays in the mean's
        count, so that the loss falls with the length that a batch is padded to.

    References:
        Xiaoqi Jiao, Yichun Yin, Lifeng Shang, Xin Jiang, Xiao Chen, Linlin Li, Fang Wang, Qun Liu.
        TinyBERT: Distilling BERT for Natural Language Understanding. 2020.
    """
    want_alike("tinybert_attention", rank=3, student=student, teacher=teacher)
    if student.shape[-1] != student.shape[-2]:
        raise TransferError(
            f"tinybert_attention: wanted scores (n, heads, tokens, tokens), got student {shown(student)}"
        )
    want_mask("tinybert_attention", student, mask)
    s, t = wide(student, teacher.detach())
    valid = None
    if mask is not None:
        kept = (mask != 0).reshape(mask.shape[0], *[1] * (student.ndim - 3), mask.shape[1])
        valid = kept[..., None] & kept[..., None, :]
        # Before the difference: the masks of attention are often -inf.
        s, t = torch.where(valid, s, 0), torch.where(valid, t, 0)
    return masked_square(s, t, valid).to(student.dtype)


@claims(coupled=False, count=tokens, zero_at_equality=True, non_negative=True, symmetric=True, double_backward=True)
def tinybert_hidden(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Mean squared difference of hidden states, or of embeddings.

    .. math:: \frac{1}{d \sum_i m_i} \sum_i \sum_{p \text{ valid}} \| S_{ip} - T_{ip} \|^2

    Where widths differ the student's states are projected by a matrix that learns: an adapter.

    Args:
        student: states (n, tokens, d), projected.
        teacher: states of the same shape; get no gradient.
        mask: (n, tokens), not 0 where a token is valid; None if all are.

    Returns:
        A scalar in the squared units of the states, at least 0: a mean over valid tokens and widths.

    Raises:
        TransferError: for shapes that differ, or a mask that does not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[[3.0], [7.0]]]), torch.zeros(1, 2, 1)
        >>> tt.losses.tinybert_hidden(student, teacher, torch.tensor([[1, 0]])).item()
        9.0

    Checked against:
        `F.mse_loss` without a mask, and a loop.

    Peers:
        The authors' code has no mask: padding is matched too. TextBrewer's hid_mse has one.

    References:
        Xiaoqi Jiao, Yichun Yin, Lifeng Shang, Xin Jiang, Xiao Chen, Linlin Li, Fang Wang, Qun Liu.
        TinyBERT: Distilling BERT for Natural Language Understanding. 2020.
    """
    want_alike("tinybert_hidden", rank=3, student=student, teacher=teacher)
    want_mask("tinybert_hidden", student, mask)
    s, t = wide(student, teacher.detach())
    return masked_square(s, t, None if mask is None else (mask != 0)[..., None]).to(student.dtype)
