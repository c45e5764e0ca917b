"""Normalised knowledge distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import picked, wide, without
from ttransfer.losses._check import want_labels, want_logits


@claims(
    coupled=False,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    double_backward=True,
    not_stationary="the label's class is pulled up by as much as the teacher is sure of it, also where both agree",
)
def nkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    gamma: float | Tensor = 1.5,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    r"""Cross-entropy of the label by the teacher's sureness, and cross-entropy among the other classes.

    .. math::
        -\frac1n \sum_i p^t_{i, y_i} \log p^s_{i, y_i} + \gamma T^2 \sum_{j \neq y_i} r^t_{ij} \log r^s_{ij},
        \qquad r = \mathrm{softmax}\bigl((z_j / T)_{j \neq y}\bigr)

    p is the prediction at a temperature of 1, r the softened one among the classes that are not the label's: both of
    its sides add up to 1, which those of the full prediction do not. Of two classes the second part is 0.

    Args:
        student: logits (n, classes) or (n, classes, ...), of at least two classes.
        teacher: logits of the same shape; gets no gradient.
        labels: whole numbers (n,) or (n, ...), from 0 to classes - 1.
        gamma: weight of the second part.
        temperature: T > 0 of the second part, in units of the logits.

    Returns:
        A scalar in nats, at least 0: the mean over rows and positions.

    Raises:
        TransferError: if the shapes differ or are not those of logits, for one class, or labels that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher, labels = torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([0])
        >>> round(tt.losses.nkd(student, teacher, labels, gamma=1.0).item(), 4)  # log 3 / 3 + log 2
        1.0594

    Checked against:
        A loop from the paper.

    Peers:
        A version of the authors' code (cls_KD) builds the mask of the other classes from ones, so that it leaves none
        out: its second part is the plain soft cross-entropy.

    References:
        Zhendong Yang, Ailing Zeng, Zhe Li, Tianke Zhang, Chun Yuan, Yu Li.
        From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and
        Customized Soft Labels. 2023.
    """
    want_logits("nkd", student=student, teacher=teacher)
    if student.shape[1] < 2:
        raise TransferError(f"nkd: wanted at least two classes, got student {shown(student)}")
    want_labels("nkd", student, labels)
    s, t = wide(student, teacher.detach())
    target = picked(t.softmax(1), labels) * picked(s.log_softmax(1), labels)
    there, others = without(s / temperature, labels)
    log_s = torch.where(there, 0, others.log_softmax(1))
    rest = (without(t / temperature, labels)[1].softmax(1) * log_s).sum(1)
    value = -(target + gamma * temperature**2 * rest).mean()
    return value.to(torch.promote_types(student.dtype, teacher.dtype))
