"""Inter-channel correlation: which channels go together."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import unit, wide
from ttransfer.losses._check import want_maps, want_variant


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    repeat_invariant=True,
    double_backward=True,
)
def ickd(student: Tensor, teacher: Tensor, *, variant: Literal["paper", "code"] = "paper") -> Tensor:
    r"""Squared distance between the two tables of inner products of an example's channels.

    .. math:: \frac1{n c^2} \sum_i \| s_i s_i^\top - t_i t_i^\top \|_F^2

    An example is a matrix of c channels by positions, whose number may differ between the nets. "paper" is the
    formula, in which large features count more. "code" is what the authors ran: each row of a table is divided
    by its norm, and the sum is divided by n · c.

    Args:
        student: maps (n, c, height, width), after the adapter.
        teacher: maps (n, c, any height, any width); gets no gradient.
        variant: "paper" or "code".

    Returns:
        A scalar, at least 0, the mean over examples: in the fourth power of the features' units for "paper",
        without unit and at most 4 for "code".

    Raises:
        TransferError: if rows or channels differ, for what is no map, for another variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[[[1.0]], [[0.0]]]]), torch.ones(1, 2, 1, 1)
        >>> tt.losses.ickd(student, teacher).item()  # 3 / 4
        0.75
        >>> round(tt.losses.ickd(student, teacher, variant="code").item(), 4)  # (3 - sqrt(2)) / 2
        0.7929

    Checked against:
        torchdistill's ChSimLoss ("code", which it divides by n once more), and a loop from the paper.

    Peers:
        torchdistill has "code", divided by n twice, as the authors' code for ImageNet is; that for CIFAR is not.

    References:
        Li Liu, Qingle Huang, Sihao Lin, Hongwei Xie, Bing Wang, Xiaojun Chang, Xiaodan Liang.
        Exploring Inter-Channel Correlation for Diversity-Preserved Knowledge Distillation. 2021.
    """
    want_maps("ickd", space=False, student=student, teacher=teacher)
    want_variant("ickd", variant)
    s, t = (x.flatten(2) @ x.flatten(2).mT for x in wide(student, teacher.detach()))
    if variant == "paper":
        value = F.mse_loss(s, t)
    else:
        value = F.mse_loss(unit(s, 2), unit(t, 2)) * s.shape[1]
    return value.to(torch.promote_types(student.dtype, teacher.dtype))
