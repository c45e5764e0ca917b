"""Fine-grained feature imitation for detectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_maps


def _imitated(student: Any, teacher: Any, mask: Tensor) -> Tensor:
    return mask.sum()


@claims(
    coupled=False,
    count=_imitated,
    zero_at_equality=True,
    non_negative=True,
    double_backward=True,
)
def feature_imitation(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Distance of the student's feature maps from the teacher's where a mask says that objects are near.

    .. math:: \frac{1}{2 N} \sum_{i,p} m_{i,p} \sum_c (s_{i,c,p} - t_{i,c,p})^2, \qquad N = \sum_{i,p} m_{i,p}

    The paper's mask has the positions of anchors that overlap an object by more than half of the best anchor's
    overlap with it. Its student runs through a 3 x 3 convolution first, `tt.adapters.conv`. It weighs this by 0.01.

    Args:
        student: maps (n, c, h, w), brought to the teacher's channels.
        teacher: maps of the same shape; gets no gradient.
        mask: (n, h, w), True or 1 where the student is to imitate; any weight that is at least 0.

    Returns:
        A scalar, at least 0, in squared units of the features: the mean over the positions of all maps together, the
        sum over channels; 0 if the mask is empty.

    Raises:
        TransferError: for what is no map, for shapes that differ.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(1, 2, 1, 2), torch.full((1, 2, 1, 2), 3.0)
        >>> tt.losses.feature_imitation(student, teacher, torch.tensor([[[1.0, 0.0]]])).item()  # (9 + 9) / 2
        9.0

    Checked against:
        A loop from the paper.

    Peers:
        The authors' code is the same; it is part of their detectors, and its value is NaN where the mask is empty.

    References:
        Tao Wang, Li Yuan, Xiaopeng Zhang, Jiashi Feng.
        Distilling Object Detectors with Fine-grained Feature Imitation. 2019.
    """
    want_maps("feature_imitation", student=student, teacher=teacher)
    wanted = (student.shape[0], *student.shape[2:])
    if mask.shape != wanted:
        raise TransferError(f"feature_imitation: wanted a mask {wanted}, one for each position, got {shown(mask)}")
    s, t = wide(student, teacher.detach())
    m = mask.detach().to(s.dtype)
    kept = m.sum()
    value = (m * (s - t).square().sum(1)).sum() / (2 * torch.where(kept > 0, kept, 1))
    return value.to(torch.promote_types(student.dtype, teacher.dtype))
