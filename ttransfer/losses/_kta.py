"""Knowledge translation and adaptation for dense prediction, and the affinity of positions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import root, unit, wide
from ttransfer.losses._check import want_alike, want_maps, want_variant
from ttransfer.losses._ft import ft


@claims(coupled=False, zero_at_equality=True, non_negative=True, symmetric=True, scale_invariant=True)
def kta(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean absolute difference of normalised features: of the student's adapted ones from the translated teacher's.

    .. math:: \frac{1}{nd} \sum_i \Bigl\| \frac{s_i}{\|s_i\|_2} - \frac{t_i}{\|t_i\|_2} \Bigr\|_1

    The teacher's features come through the encoder of an autoencoder trained before, the student's through an
    adapter that learns; both are the caller's. The formula is that of `ft`.

    Args:
        student: features (n, ...); all d numbers of an example are one vector.
        teacher: features of the same shape; get no gradient.

    Returns:
        A scalar without units, at least 0: the paper's norms p = 1 and q = 2, a mean over examples and numbers.

    Raises:
        TransferError: if the shapes differ.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.losses.kta(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])).item()  # (1 + 1) / 2
        1.0

    Checked against:
        torchdistill's KTALoss, and a loop.

    Peers:
        torchdistill, which gives NaN for an example of zeros.

    References:
        Tong He, Chunhua Shen, Zhi Tian, Dong Gong, Changming Sun, Youliang Yan.
        Knowledge Adaptation for Efficient Semantic Segmentation. 2019.
    """
    want_alike("kta", student=student, teacher=teacher)
    return ft(student, teacher)


@claims(coupled=False, zero_at_equality=True, non_negative=True, symmetric=True, scale_invariant=True)
def affinity(student: Tensor, teacher: Tensor, *, variant: Literal["paper", "code"] = "paper") -> Tensor:
    r"""Distance of the tables that say how alike any two positions of an example are.

    .. math::
        \frac1n \sum_i \sum_p \| A^s_{ip} - A^t_{ip} \|_2, \qquad
        A_{ipq} = \frac{1}{hw} \Bigl\langle \frac{F_{ip}}{\|F_{ip}\|}, \frac{F_{iq}}{\|F_{iq}\|} \Bigr\rangle

    The paper's sum is read as one over positions p.

    In words, `variant="code"` differs so: each channel has a table of its own, the outer product of its normalised
    map with itself, and the sum is over channels of the Frobenius norms, over hw. That is what torchdistill
    computes. Here the norm of a difference of outer products follows from inner products of vectors, so that there
    is no table and no loop over channels.

    Args:
        student: maps (n, channels, height, width).
        teacher: maps (n, channels, height, width), for "paper" of any channels; get no gradient.
        variant: "paper" compares positions by all channels, "code" each channel by itself.

    Returns:
        A scalar without units, at least 0: a sum over positions ("paper") or channels ("code"), a mean over
        examples.

    Raises:
        TransferError: for what are no maps of the same rows and size, or an unknown variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> student = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two positions, nothing in common
        >>> teacher = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])  # two positions alike
        >>> tt.losses.affinity(student, teacher).item()  # 2 rows, each 1 / 2 away
        1.0

    Checked against:
        torchdistill's AffinityLoss ("code"), and loops for both.

    Peers:
        torchdistill ("code"), with a loop over channels of tables (hw, hw); its gradient is NaN where a channel
        is as the teacher's, or zero.

    References:
        Tong He, Chunhua Shen, Zhi Tian, Dong Gong, Changming Sun, Youliang Yan.
        Knowledge Adaptation for Efficient Semantic Segmentation. 2019.
    """
    want_variant("affinity", variant)
    want_maps("affinity", channels=variant == "code", student=student, teacher=teacher)
    s, t = (x.flatten(2) for x in wide(student, teacher.detach()))
    positions = s.shape[2]
    if variant == "code":
        s, t = unit(s, 2), unit(t, 2)
        less, more = s - t, s + t
        # ssᵀ - ttᵀ is half of less moreᵀ + more lessᵀ: nothing cancels where s is near t.
        squares = less.square().sum(2) * more.square().sum(2) + (less * more).sum(2).square()
        return (root(squares / 2).sum(1).mean() / positions).to(student.dtype)
    s, t = unit(s), unit(t)
    gap = (s.mT @ s - t.mT @ t) / positions
    return root(gap.square().sum(2)).sum(1).mean().to(student.dtype)
