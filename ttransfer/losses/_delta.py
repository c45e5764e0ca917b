"""Fine-tuning that keeps feature maps near those of the starting point."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_alike


@claims(coupled=False, zero_at_equality=True, non_negative=True, double_backward=True)
def delta(student: Tensor, teacher: Tensor, *, weights: Tensor | None = None) -> Tensor:
    r"""Distance of feature maps from the starting point's, each channel by its own weight.

    .. math:: \frac1{2n} \sum_i \frac{C}{P} \sum_c a_c \, \|s_{i,c} - t_{i,c}\|^2

    P is the number of positions of a map. The paper takes for a the softmax over channels of how much the source
    task's loss rises where that channel of the starting point is set to 0, so that a sums to 1; Ca is then 1 on
    average, as it is without weights. The paper adds ½β‖w‖² for the new head, which is `l2`.

    Args:
        student: maps (n, c, ...) of the net that is trained; features (n, c) are maps of one position.
        teacher: maps of the same shape, of the net as it started; gets no gradient.
        weights: a, (c,), at least 0; None is 1/c for each channel. Gets no gradient.

    Returns:
        A scalar, at least 0, in squared units of the features: the mean over rows and positions, the sum over channels.

    Raises:
        TransferError: if the shapes differ, are not those of maps, or weights are not one for each channel.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 0.0]])
        >>> tt.losses.delta(student, teacher).item()
        2.5
        >>> tt.losses.delta(student, teacher, weights=torch.tensor([1.0, 0.0])).item()
        4.0

    Checked against:
        zhijian's DELTA, and a loop from the paper.

    Peers:
        TLlib sums over the batch, so that the strength of its term grows with the batch; zhijian sums over rows,
        channels and positions and knows no weights, and its trainer detaches what it compares.

    References:
        Xingjian Li, Haoyi Xiong, Hanchao Wang, Yuxuan Rao, Liping Liu, Zeyu Chen, Jun Huan.
        DELTA: DEep Learning Transfer using Feature Map with Attention for Convolutional Networks. 2019.
    """
    want_alike("delta", student=student, teacher=teacher)
    channels = student.shape[1]
    if weights is not None and weights.shape != (channels,):
        raise TransferError(f"delta: wanted {channels} weights, one for each channel, got {shown(weights)}")
    s, t = wide(student, teacher.detach())
    positions = math.prod(s.shape[2:])
    if weights is None:
        total = F.mse_loss(s, t, reduction="sum") / positions
    else:
        squares = (s - t).square().reshape(*s.shape[:2], positions).mean(2)
        total = (squares * (channels * weights.detach())).sum()
    return (total / (2 * s.shape[0])).to(torch.promote_types(student.dtype, teacher.dtype))
