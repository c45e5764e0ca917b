"""Factor transfer: the teacher's features, paraphrased."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import unit, wide
from ttransfer.losses._at import attention
from ttransfer.losses._check import want_alike, want_maps

_TAGS: dict[str, Any] = {
    "zero_at_equality": True,
    "non_negative": True,
    "symmetric": True,
    "scale_invariant": True,
    "repeat_invariant": True,
}


@claims(coupled=False, **_TAGS)
def ft(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Absolute distance between the factors of student and teacher, each of length 1.

    .. math:: \frac1{nd} \sum_i \Bigl\| \frac{s_i}{\|s_i\|_2} - \frac{t_i}{\|t_i\|_2} \Bigr\|_1

    Factors are learned: the teacher's come from the paraphraser, an autoencoder that was trained before, the
    student's from the translator, which is trained along. The paper writes the norm, and all code, the authors' too,
    takes its mean over the d entries; the weight of 200 to 500 that is usual belongs to the mean.

    Args:
        student: factors (n, d) or (n, ...), the translator's.
        teacher: factors of the same shape, the paraphraser's; gets no gradient.

    Returns:
        A scalar without unit, at least 0: the mean over all entries.

    Raises:
        TransferError: if the shapes differ.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.losses.ft(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])).item(), 4)
        0.6

    Checked against:
        torchdistill's FTLoss, zhijian's FT, and a loop from the paper.

    Peers:
        torchdistill and zhijian have it; torchdistill's is NaN for a row of zeros.

    References:
        Jangho Kim, SeongUk Park, Nojun Kwak.
        Paraphrasing Complex Network: Network Compression via Factor Transfer. 2018.
    """
    want_alike("ft", student=student, teacher=teacher)
    s, t = (unit(x.flatten(1)) for x in wide(student, teacher.detach()))
    return F.l1_loss(s, t).to(torch.promote_types(student.dtype, teacher.dtype))


@claims(coupled=False, **_TAGS)
def ft_maps(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Absolute distance between the places that student and teacher attend to: factor transfer without factors.

    .. math:: \frac1{nhw} \sum_i \Bigl\| \frac{q(s_i)}{\|q(s_i)\|_2} - \frac{q(t_i)}{\|q(t_i)\|_2} \Bigr\|_1,
        \qquad q(x) = \operatorname{vec} \sum_c x_c^2

    This is what RepDistiller and MMRazor compute under the name of factor transfer: the factor is the map of
    squares as in `at`, and nothing is learned. Channels may differ.

    Args:
        student: maps (n, channels, height, width).
        teacher: maps (n, any channels, height, width); gets no gradient.

    Returns:
        A scalar without unit, at least 0: the mean over examples and positions. The usual weight is 200.

    Raises:
        TransferError: if rows, heights or widths differ; for what is no map.

    Example:
        >>> import torch, ttransfer as tt
        >>> left, right = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
        >>> tt.losses.ft_maps(left, right).item()
        1.0

    Checked against:
        a loop from RepDistiller's formula.

    Peers:
        RepDistiller and MMRazor have it.

    References:
        Jangho Kim, SeongUk Park, Nojun Kwak.
        Paraphrasing Complex Network: Network Compression via Factor Transfer. 2018.
    """
    want_maps("ft_maps", channels=False, student=student, teacher=teacher)
    s, t = (attention(x) for x in wide(student, teacher.detach()))
    return F.l1_loss(s, t).to(torch.promote_types(student.dtype, teacher.dtype))
