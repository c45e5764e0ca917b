"""Curriculum temperature: a temperature that learns to make distillation harder."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import divergence, wide
from ttransfer.losses._check import want_floats, want_logits


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
)
def ctkd(
    student: Tensor,
    teacher: Tensor,
    theta: Tensor,
    *,
    scale: float | Tensor = 1.0,
    lowest: float | Tensor = 1.0,
    span: float | Tensor = 20.0,
) -> Tensor:
    r"""`kd` at a learned temperature whose gradient is reversed.

    .. math::
        \frac1n \sum_i \tau_i^2 \, \mathrm{KL}\bigl(
        \mathrm{softmax}(t_i / \tau_i) \,\|\, \mathrm{softmax}(s_i / \tau_i)\bigr),
        \qquad \tau = \tau_0 + \tau_1 \, \mathrm{sigmoid}(\theta)

    The student descends; θ, in the same step of the same optimizer, ascends: its gradient comes out multiplied by
    -scale. The authors start θ at 1, a temperature of 15.6, and raise the scale from 0 to 1 along a cosine over the
    first 10 epochs, such as by `tt.schedules.cosine`.

    Args:
        student: logits (n, classes).
        teacher: logits of the same shape; gets no gradient.
        theta: what the temperature is made of: one number, (), or one a row, (n,), predicted by a net of its own.
        scale: strength of the reversed gradient, at least 0.
        lowest: τ0, the temperature at θ = -∞.
        span: τ1, from the lowest temperature to the highest.

    Returns:
        A scalar in nats, at least 0 (up to rounding): the mean over rows.

    Raises:
        TransferError: if the shapes differ or are not (n, classes), or for a θ of another shape.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> theta = torch.tensor(0.0)
        >>> value = tt.losses.ctkd(student, teacher, theta, lowest=1.0, span=2.0)  # τ = 2
        >>> round(value.item(), 4) == round(tt.losses.kd(student, teacher, temperature=2.0).item(), 4) == 0.4438
        True

    Checked against:
        `kd` at the temperature, the reversed gradient by automatic differentiation, and a loop.

    Peers:
        The authors' code reverses by a torch.autograd.Function without the rules that torch.func asks for.

    References:
        Zheng Li, Xiang Li, Lingfeng Yang, Borui Zhao, Renjie Song, Lei Luo, Jun Li, Jian Yang.
        Curriculum Temperature for Knowledge Distillation. 2023.
    """
    want_logits("ctkd", student=student, teacher=teacher)
    want_floats("ctkd", theta=theta)
    if student.ndim != 2:
        raise TransferError(f"ctkd: wanted logits (n, classes), got student {shown(student)}")
    if theta.ndim and theta.shape != student.shape[:1]:
        raise TransferError(
            f"ctkd: wanted a theta of () or one for each row, got student {shown(student)} and theta {shown(theta)}"
        )
    s, t, x = wide(student, teacher.detach(), theta)
    # The value of theta, and -scale of its slope.
    x = x.detach() - scale * (x - x.detach())
    temperature = lowest + span * x.sigmoid()
    column = temperature[:, None] if theta.ndim else temperature
    rows = divergence(s / column, t / column)
    return (temperature**2 * rows).mean().to(torch.promote_types(student.dtype, teacher.dtype))
