"""Distillation through a token of its own, as DeiT does: by the teacher's decision, or by its predictions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import wide
from ttransfer.losses._check import want_logits, want_variant
from ttransfer.losses._kd import kd


@claims(
    coupled=False,
    non_negative=True,
    shift_invariant=True,
    double_backward=True,
    not_stationary="the teacher's class is pulled up however sure the student is of it",
)
def deit_hard(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Cross-entropy with the teacher's decision for a label.

    .. math::
        -\frac1n \sum_i \log \mathrm{softmax}(s_i)_{\hat y_i}, \qquad \hat y_i = \operatorname{argmax}_j t_{ij}

    The student's logits are those of its distillation token; the class token has a cross-entropy with the labels, and
    each counts one half. There is no temperature, and of equal largest logits the first decides.

    Args:
        student: logits (n, classes) or (n, classes, ...) of the distillation token.
        teacher: logits of the same shape; gets no gradient.

    Returns:
        A scalar in nats, at least 0: the mean over rows and positions.

    Raises:
        TransferError: if the shapes differ or are not those of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.1, 0.0]])
        >>> round(tt.losses.deit_hard(student, teacher).item(), 4)  # log(1 + e²)
        2.1269

    Checked against:
        `F.cross_entropy` with the decisions, as timm's TokenDistillationTask has it, and a loop.

    Peers:
        timm and the first version of the authors' code are the same.

    References:
        Hugo Touvron, Matthieu Cord, Matthijs Douze, Francisco Massa, Alexandre Sablayrolles, Hervé Jégou.
        Training data-efficient image transformers & distillation through attention. 2021.
    """
    want_logits("deit_hard", student=student, teacher=teacher)
    (s,) = wide(student)
    return F.cross_entropy(s, teacher.detach().argmax(1)).to(student.dtype)


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    double_backward=True,
)
def deit_soft(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float | Tensor = 3.0,
    variant: Literal["paper", "code"] = "paper",
) -> Tensor:
    r"""`kd` on the distillation token, as the paper or as its code has it.

    .. math:: T^2 \, \frac1n \sum_i \mathrm{KL}\bigl(\mathrm{softmax}(t_i / T) \,\|\, \mathrm{softmax}(s_i / T)\bigr)

    The paper weighs it by 0.1 and the cross-entropy with the labels by 0.9.

    In words, `variant="code"` differs so: a mean over classes too, which divides by their number, so that the paper's
    weight of 0.1 is one of 1e-4 on ImageNet.

    Args:
        student: logits (n, classes) or (n, classes, ...) of the distillation token.
        teacher: logits of the same shape; gets no gradient.
        temperature: T > 0, in units of the logits.
        variant: "paper" sums over the classes, "code" takes their mean, as the authors'.

    Returns:
        A scalar in nats, at least 0 (up to rounding): the mean over rows and positions.

    Raises:
        TransferError: if the shapes differ or are not those of logits, or for an unknown variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> round(tt.losses.deit_soft(student, teacher, temperature=2.0).item(), 4)
        0.4438
        >>> round(tt.losses.deit_soft(student, teacher, temperature=2.0, variant="code").item(), 4)
        0.2219

    Checked against:
        `kd`, and for "code" the formula of the authors' losses.py.

    Peers:
        timm's TokenDistillationTask has the paper's.

    References:
        Hugo Touvron, Matthieu Cord, Matthijs Douze, Francisco Massa, Alexandre Sablayrolles, Hervé Jégou.
        Training data-efficient image transformers & distillation through attention. 2021.
    """
    want_variant("deit_soft", variant)
    want_logits("deit_soft", student=student, teacher=teacher)
    s, t = wide(student, teacher)
    value = kd(s, t, temperature=temperature)
    return (value / s.shape[1] if variant == "code" else value).to(torch.promote_types(student.dtype, teacher.dtype))
