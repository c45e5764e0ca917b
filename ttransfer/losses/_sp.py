"""Similarity-preserving distillation: which examples are alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import gram, unit, wide
from ttransfer.losses._check import want_rows


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    scale_invariant=True,
    rotation_invariant=True,
    double_backward=True,
)
def sp(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared distance between the two tables of similarity of the batch's examples.

    .. math:: \frac1{n^2} \Bigl\| N(s s^\top) - N(t t^\top) \Bigr\|_F^2

    N divides each row by its Euclidean norm. Only inner products count: the widths may differ, and a rotation of
    either side's features costs nothing. One example has nothing to be alike to: the loss is 0.

    Args:
        student: features (n, d) or maps (n, ...).
        teacher: features or maps of the same n; gets no gradient.

    Returns:
        A scalar without unit, from 0 to 4 / n. The usual weight is 3000.

    Raises:
        TransferError: if the numbers of rows differ, or for rows that are single numbers.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.losses.sp(torch.eye(2), torch.ones(2, 1)).item(), 4)  # 1 - 1 / sqrt(2)
        0.2929

    Checked against:
        zhijian's SP, and a loop from the paper.

    Peers:
        RepDistiller, mdistiller and zhijian have it. torchdistill's SPKDLoss divides each row by the sum of its
        absolute values, not by its norm: `normalize(x, 1)` sets the power, not the axis. For 16 normal examples
        of width 32 its value is a sixth of the paper's, for 128 of width 512 a 24th.

    References:
        Frederick Tung, Greg Mori. Similarity-Preserving Knowledge Distillation. 2019.
    """
    want_rows("sp", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    return F.mse_loss(unit(gram(s)), unit(gram(t))).to(torch.promote_types(student.dtype, teacher.dtype))
