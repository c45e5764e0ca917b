"""Masked generative distillation: the teacher's map, generated from part of the student's."""

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
def mgd(student_generated: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared distance of a generated map from the teacher's.

    .. math:: \frac1n \sum_i \| g_i - t_i \|_F^2, \qquad g = G(M \odot s)

    The student's map s, after an adapter, is hidden in part by a mask M of zeros and ones, and G, a 3x3
    convolution, a ReLU and a 3x3 convolution, generates from the rest what the teacher has. Mask and G come before this
    function, as `generate(mask * student)`. For detection M hides 65 of 100 positions, the same in all channels; for
    classification it hides 15 of 100 channels.

    Args:
        student_generated: maps g, (n, ...), which G made of the masked student.
        teacher: maps of the same shape; gets no gradient.

    Returns:
        A scalar, at least 0, in the square of the teacher's units: a sum over entries, a mean over
        examples. The paper's weight is 2e-5 for detection and 7e-5 for classification.

    Raises:
        TransferError: if the shapes differ.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.losses.mgd(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 2.0]]]])).item()
        5.0

    Checked against:
        modelopt's MGDLoss, which is this divided by the size of an example, and a loop from the paper.

    Peers:
        MMRazor has it, and the authors. modelopt takes the mean over entries, so that the paper's weights are
        too small for it, and shows its own alpha of 1.

    References:
        Zhendong Yang, Zhe Li, Mingqi Shao, Dachuan Shi, Zehuan Yuan, Chun Yuan.
        Masked Generative Distillation. 2022.
    """
    want_alike("mgd", student_generated=student_generated, teacher=teacher)
    s, t = wide(student_generated, teacher.detach())
    value = F.mse_loss(s, t, reduction="sum") / student_generated.shape[0]
    return value.to(torch.promote_types(student_generated.dtype, teacher.dtype))
