"""Channel-wise distillation: where each channel looks."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import divergence, wide
from ttransfer.losses._check import want_maps


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    repeat_invariant=True,
    double_backward=True,
)
def cwd(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 4.0) -> Tensor:
    r"""Divergence of each channel's softened distribution over positions from the teacher's.

    .. math:: \frac{T^2}{nc} \sum_{i,k} \mathrm{KL}\bigl(
        \mathrm{softmax}_p(t_{ikp} / T) \,\|\, \mathrm{softmax}_p(s_{ikp} / T) \bigr)

    The softmax of `kd` over positions p rather than classes. Maps are features or logits.

    Args:
        student: maps (n, channels, height, width).
        teacher: maps of the same shape; gets no gradient.
        temperature: T > 0, in units of the maps.

    Returns:
        A scalar in nats, at least 0 (up to rounding): a sum over positions, the mean over examples and
        channels. The paper's weight is 3 for logits and 50 for features.

    Raises:
        TransferError: if the shapes differ, or for what is no map.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[2.0, 0.0]]]])
        >>> round(tt.losses.cwd(student, teacher, temperature=2.0).item(), 4)
        0.4438

    Checked against:
        a loop from the paper, and `torch.nn.functional.kl_div`.

    Peers:
        MMRazor has it, with T = 1; the authors' code takes the logarithm of a softmax, which is -inf where one
        position is more than 104 T below another.

    References:
        Changyong Shu, Yifan Liu, Jianfei Gao, Zheng Yan, Chunhua Shen.
        Channel-wise Knowledge Distillation for Dense Prediction. 2021.
    """
    want_maps("cwd", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    channels = divergence((s / temperature).flatten(2), (t / temperature).flatten(2), 2)
    return (temperature**2 * channels.mean()).to(torch.promote_types(student.dtype, teacher.dtype))
