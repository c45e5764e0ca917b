"""FitNets: the teacher's features as hints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import wide
from ttransfer.losses._check import want_alike


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    rotation_invariant=True,
    repeat_invariant=True,
    double_backward=True,
)
def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared error of the student's features against the teacher's.

    .. math:: \frac1{nd} \sum_{i,k} (s_{ik} - t_{ik})^2

    The paper has half the squared distance of an example, a sum: d/2 times this. All implementations take
    the mean, which does not grow with the size of the map. Where the widths differ the student's features go
    through an adapter first, as a linear map or a 1x1 convolution, which is trained along.

    Args:
        student: features (n, d) or maps (n, ...), after the adapter.
        teacher: features of the same shape; gets no gradient.

    Returns:
        A scalar, at least 0, in the square of the features' units: the mean over all entries.

    Raises:
        TransferError: if the shapes differ.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.losses.fitnet(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]])).item()
        2.0

    Checked against:
        torch.nn.functional.mse_loss, zhijian's Hint, and a loop from the paper.

    Peers:
        torchdistill, mdistiller, RepDistiller, MMRazor, zhijian and timm have it. zhijian lets the gradient
        into the teacher.

    References:
        Adriana Romero, Nicolas Ballas, Samira Ebrahimi Kahou, Antoine Chassang, Carlo Gatta, Yoshua Bengio.
        FitNets: Hints for Thin Deep Nets. 2015.
    """
    want_alike("fitnet", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    return F.mse_loss(s, t).to(torch.promote_types(student.dtype, teacher.dtype))
