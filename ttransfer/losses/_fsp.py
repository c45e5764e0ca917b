"""The flow of solution procedure: how one layer's channels lead to another's."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import wide
from ttransfer.losses._check import want_maps


@claims(coupled=False, zero_at_equality=True, non_negative=True, repeat_invariant=True, double_backward=True)
def fsp(student_first: Tensor, student_last: Tensor, teacher_first: Tensor, teacher_last: Tensor) -> Tensor:
    r"""Squared distance between the matrices that lead from a first layer's channels to a last layer's.

    .. math:: \frac1n \sum_i \| G(s_i) - G(t_i) \|_F^2, \qquad
        G_{kl}(x) = \frac1{hw} \sum_{p} x^{\text{first}}_{kp} \, x^{\text{last}}_{lp}

    p goes over the h · w positions, which both layers of one net must share; pool the larger map first. The
    two nets may be of different height and width, but not of different channels.

    Args:
        student_first: maps (n, c, height, width).
        student_last: maps (n, d, height, width), of the same height and width.
        teacher_first: maps (n, c, any height, any width); gets no gradient.
        teacher_last: maps (n, d, ...), of the height and width of `teacher_first`; gets no gradient.

    Returns:
        A scalar, at least 0, in the fourth power of the features' units: a sum over c · d, a mean over examples.

    Raises:
        TransferError: if rows differ, or what must be shared does; for what is no map.

    Example:
        >>> import torch, ttransfer as tt
        >>> ones, zeros = torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
        >>> tt.losses.fsp(ones, ones, zeros, zeros).item()
        1.0

    Checked against:
        zhijian's FSP, which is this divided by c · d, and a loop from the paper.

    Peers:
        RepDistiller and zhijian take the mean over c · d where the paper sums. torchdistill's FSPLoss adds up the
        norms of the columns, not their squares: its gradient does not fade towards equality.

    References:
        Junho Yim, Donggyu Joo, Jihoon Bae, Junmo Kim. A Gift from Knowledge Distillation: Fast Optimization,
        Network Minimization and Transfer Learning. 2017.
    """
    want_maps("fsp", channels=False, student_first=student_first, student_last=student_last)
    want_maps("fsp", channels=False, teacher_first=teacher_first, teacher_last=teacher_last)
    want_maps("fsp", space=False, student_first=student_first, teacher_first=teacher_first)
    want_maps("fsp", space=False, student_last=student_last, teacher_last=teacher_last)
    given = (student_first, student_last, teacher_first.detach(), teacher_last.detach())
    s1, s2, t1, t2 = wide(*given)
    value = F.mse_loss(_flow(s1, s2), _flow(t1, t2), reduction="sum") / s1.shape[0]
    return value.to(functools.reduce(torch.promote_types, (x.dtype for x in given)))


def _flow(first: Tensor, last: Tensor) -> Tensor:
    first, last = first.flatten(2), last.flatten(2)
    return first @ last.mT / first.shape[2]
