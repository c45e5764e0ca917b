"""Distillation by Pearson's correlation of feature maps."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import unit, wide
from ttransfer.losses._check import want_alike


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    scale_invariant=True,
    repeat_invariant=True,
    double_backward=True,
)
def pkd(student: Tensor, teacher: Tensor) -> Tensor:
    r"""One minus the correlation of student and teacher, for each channel over the batch and all positions.

    .. math:: \frac1c \sum_k (1 - \rho_k) = \frac1c \sum_k \frac12 \| \hat s_k - \hat t_k \|^2

    x̂ is a channel over all examples and positions, less its mean, of length 1. Neither the channels' sizes nor
    their means count. A channel that is constant has no correlation: it counts ½, and 0 if it is in both nets.

    Args:
        student: maps (n, channels, height, width), or (n, channels, ...).
        teacher: maps of the same shape; gets no gradient.

    Returns:
        A scalar without unit, from 0 to 2: the mean over channels. The paper's weights are 6 to 10.

    Raises:
        TransferError: if the shapes differ.

    Example:
        >>> import torch, ttransfer as tt
        >>> up, down = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
        >>> round(tt.losses.pkd(up, down).item(), 4)
        2.0

    Checked against:
        torch.corrcoef, and a loop from the paper.

    Peers:
        MMRazor, the authors' code, divides by the standard deviation of m - 1 where the mean is over m entries:
        (m - 1) / m times this; and it adds 1e-6 to it, so that small features count less.

    References:
        Weihan Cao, Yifan Zhang, Jianfei Gao, Anda Cheng, Ke Cheng, Jian Cheng.
        PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient. 2022.
    """
    want_alike("pkd", student=student, teacher=teacher)
    s, t = (_standard(x) for x in wide(student, teacher.detach()))
    value = (s - t).square().sum() / (2 * student.shape[1])
    return value.to(torch.promote_types(student.dtype, teacher.dtype))


def _standard(x: Tensor) -> Tensor:
    """Channels less their means, of length 1; those that are constant up to rounding are 0."""
    over = (0, *range(2, x.ndim))
    centred = x - x.mean(over, keepdim=True)
    rounding = (8 * torch.finfo(x.dtype).eps) ** 2 * x.detach().square().mean(over, keepdim=True)
    constant = centred.detach().square().mean(over, keepdim=True) <= rounding
    return unit(torch.where(constant, 0, centred), over)
