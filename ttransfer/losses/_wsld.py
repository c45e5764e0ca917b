"""Weighted soft labels: rows in which the student is already better than its teacher count less."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import picked, wide
from ttransfer.losses._check import want_labels, want_logits


@claims(coupled=False, non_negative=True, shift_invariant=True, class_symmetric=True)
def wsld(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float | Tensor = 2.0) -> Tensor:
    r"""Soft cross-entropy, each row weighed by how far the student is behind its teacher on the label.

    .. math::
        -\frac{T^2}{n} \sum_i w_i \sum_j \mathrm{softmax}(t_i / T)_j \log \mathrm{softmax}(s_i / T)_j, \qquad
        w_i = 1 - \exp\Bigl(-\frac{\mathrm{CE}(s_i, y_i)}{\mathrm{CE}(t_i, y_i) + 10^{-7}}\Bigr)

    The cross-entropies of the weights have a temperature of 1. The weights get no gradient: where student and teacher
    are equal the student is at rest, though the weighted value may be lower elsewhere. The paper weighs the loss by
    2.5, beside the cross-entropy with the labels.

    Args:
        student: logits (n, classes) or (n, classes, ...).
        teacher: logits of the same shape; gets no gradient.
        labels: whole numbers (n,) or (n, ...), from 0 to classes - 1.
        temperature: T > 0, in units of the logits.

    Returns:
        A scalar in nats, at least 0: the mean over rows and positions, those of a low weight counted too.

    Raises:
        TransferError: if the shapes differ or are not those of logits, or for labels that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher, labels = torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0])
        >>> round(tt.losses.wsld(student, teacher, labels, temperature=1.0).item(), 4)  # (1 - 1/e) log 2
        0.4382

    Checked against:
        The formula of MMRazor's WSLD, and a loop from the paper.

    Peers:
        MMRazor's WSLD is the same; it makes its softmax modules on CUDA, and does not run without.

    References:
        Helong Zhou, Liangchen Song, Jiajie Chen, Ye Zhou, Guoli Wang, Junsong Yuan, Qian Zhang.
        Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective. 2021.
    """
    want_logits("wsld", student=student, teacher=teacher)
    want_labels("wsld", student, labels)
    s, t = wide(student, teacher.detach())
    behind, ahead = (-picked(x.detach().log_softmax(1), labels) for x in (s, t))
    weight = -torch.expm1(-behind / (ahead + 1e-7))
    rows = ((t / temperature).softmax(1) * (s / temperature).log_softmax(1)).sum(1)
    return (-(temperature**2) * weight * rows).mean().to(torch.promote_types(student.dtype, teacher.dtype))
