"""The logarithm of a sum of powers: features matched after a projector, as simple representation distillation does."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import wide
from ttransfer.losses._check import want_alike

# Below this sum features count as equal; its logarithm is the lowest value.
_FLOOR = 1e-12


@claims(coupled=True, symmetric=True)
def srd(student: Tensor, teacher: Tensor, *, exponent: float | Tensor = 4.0) -> Tensor:
    r"""Logarithm of the summed powers of the differences between features.

    .. math:: \log \max\Bigl(\sum_{i, j} |s_{ij} - t_{ij}|^a, \, 10^{-12}\Bigr)

    The logarithm makes the gradient free of the features' scale, the power a lets the largest differences lead. The
    sum is over the whole batch: of the batch given twice over it is log 2 more, and the gradient of each row depends
    on the others. Without its floor the loss would be -∞ where both are equal; below the floor the slope is 0.

    The student's features come from a linear projector, and both sides through a batch normalisation, parts of the
    nets. Beside it the paper has a cross-entropy with the labels; torchdistill's SRDLoss has twice this and `kd` at a
    temperature of 1.

    Args:
        student: features (n, d) or (n, ...), projected to the teacher's width.
        teacher: features of the same shape; gets no gradient.
        exponent: a, at least 1. torchdistill's default is 1.

    Returns:
        A scalar without a lower bound but the floor's, -27.6; a sum over rows and widths in the logarithm.

    Raises:
        TransferError: if the shapes differ, or for features without rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
        >>> round(tt.losses.srd(student, teacher).item(), 4)  # log(1 + 16)
        2.8332

    Checked against:
        torchdistill's SRDLoss, and a loop.

    Peers:
        torchdistill's SRDLoss is -∞ where both are equal, with a gradient that is NaN.

    References:
        Roy Miles, Krystian Mikolajczyk. Understanding the Role of the Projector in Knowledge Distillation. 2024.
    """
    want_alike("srd", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    total = (s - t).abs().pow(exponent).sum()
    return total.clamp_min(_FLOOR).log().to(torch.promote_types(student.dtype, teacher.dtype))
