"""Variational information distillation: how well the student foretells the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_alike, want_floats


@claims(coupled=False, repeat_invariant=True, double_backward=True)
def vid(student_mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    r"""Negative log-likelihood of the teacher's features under a Gaussian that the student foretells.

    .. math:: \frac1{ncp} \sum_{i,k,j} \frac12 \Bigl[
        \frac{(t_{ikj} - \mu_{ikj})^2}{\sigma_k^2} + \log \sigma_k^2 \Bigr]

    It bounds, from above and up to a constant, the entropy of the teacher given the student, which is how much
    information is not shared. Mean and variance are learned: μ is the student's features after a regressor, and
    σ² is one number for each channel, in the paper softplus(α) + ε; RepDistiller has 1e-5 for ε and starts at 5. The
    constant log(2π) / 2 is left out, as in all code.

    Args:
        student_mean: the student's regression μ, (n, c) or (n, c, ...), in the teacher's units.
        teacher: features of the same shape; gets no gradient.
        variance: σ² > 0 of each channel, (c,), in the square of the teacher's units.

    Returns:
        A scalar in nats, of either sign: the mean over all entries.

    Raises:
        TransferError: if the shapes of the features differ, or there is not one variance for each channel.

    Example:
        >>> import torch, ttransfer as tt
        >>> mean, teacher = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
        >>> round(tt.losses.vid(mean, teacher, torch.tensor([0.5, 1.0])).item(), 4)  # (2 - log(2)) / 4
        0.3267

    Checked against:
        torchdistill's VIDLoss, torch.nn.functional.gaussian_nll_loss, and a loop from the paper.

    Peers:
        torchdistill, RepDistiller, mdistiller and zhijian have it, with a regressor of their own. mdistiller
        keeps the variances in a Python list, where no optimizer finds them.

    References:
        Sungsoo Ahn, Shell Xu Hu, Andreas Damianou, Neil D. Lawrence, Zhenwen Dai.
        Variational Information Distillation for Knowledge Transfer. 2019.
    """
    want_alike("vid", student_mean=student_mean, teacher=teacher)
    want_floats("vid", variance=variance)
    if variance.shape != student_mean.shape[1:2]:
        raise TransferError(
            f"vid: wanted one variance for each channel, got student_mean {shown(student_mean)} "
            f"and variance {shown(variance)}"
        )
    mean, t, var = wide(student_mean, teacher.detach(), variance)
    each = var.reshape(-1, *[1] * (mean.ndim - 2))
    value = ((mean - t).square() / each).mean() + var.log().mean()
    return (value / 2).to(torch.promote_types(student_mean.dtype, teacher.dtype))
