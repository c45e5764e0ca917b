"""Class-wise self-knowledge distillation: two examples of one class are to be predicted alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import divergence, wide
from ttransfer.losses._check import want_labels, want_logits


def _pairs(student: Any, teacher: Any, labels: Tensor, partners: Tensor) -> Tensor:
    """Count the rows whose partner is of their class."""
    return (labels == partners).sum()


@claims(
    coupled=False,
    count=_pairs,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    double_backward=True,
)
def cs_kd(
    student: Tensor, teacher: Tensor, labels: Tensor, partners: Tensor, *, temperature: float | Tensor = 4.0
) -> Tensor:
    r"""`kd` of one net's predictions for two examples of a class, one of them held constant.

    .. math::
        \frac{T^2}{\sum_i m_i} \sum_i m_i \,
        \mathrm{KL}\bigl(\mathrm{softmax}(t_i / T) \,\|\, \mathrm{softmax}(s_i / T)\bigr),
        \qquad m_i = [y_i = y'_i]

    The net is its own teacher: s are its logits for the batch, t those for partners, drawn from the same classes. Rows
    whose partner is of another class count nothing, so that any pairing will do; where none is left the loss is 0.
    With a sampler of pairs all count, and this is `kd`.

    Args:
        student: logits (n, classes) or (n, classes, ...) of the batch.
        teacher: logits of the partners, of the same shape; gets no gradient.
        labels: whole numbers (n,) or (n, ...), of the batch.
        partners: labels of the partners, likewise.
        temperature: T > 0, in units of the logits.

    Returns:
        A scalar in nats, at least 0 (up to rounding): the mean over the rows and positions of one class.

    Raises:
        TransferError: if the shapes differ or are not those of logits, or for labels that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(2, 2), torch.tensor([[2.0, 0.0], [9.0, 0.0]])
        >>> labels, partners = torch.tensor([0, 1]), torch.tensor([0, 0])
        >>> round(tt.losses.cs_kd(student, teacher, labels, partners, temperature=2.0).item(), 4)  # the first alone
        0.4438

    Checked against:
        `kd` where all are pairs, which is the authors' KDLoss, and a loop.

    Peers:
        The authors' code leaves the pairing to its sampler, and takes any rows for pairs.

    References:
        Sukmin Yun, Jongjin Park, Kimin Lee, Jinwoo Shin.
        Regularizing Class-wise Predictions via Self-knowledge Distillation. 2020.
    """
    want_logits("cs_kd", student=student, teacher=teacher)
    want_labels("cs_kd", student, labels)
    if partners.shape != labels.shape:
        raise TransferError(
            f"cs_kd: wanted a partner's label for each label, got {shown(labels)} and partners {shown(partners)}"
        )
    s, t = wide(student, teacher.detach())
    rows = divergence(s / temperature, t / temperature)
    paired = (labels == partners).to(rows.dtype)
    value = (temperature**2 * paired * rows).sum() / paired.sum().clamp_min(1)
    return value.to(torch.promote_types(student.dtype, teacher.dtype))
