"""Relationship-facilitated local classifier distillation, for teachers of other classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import distances, divergence, unit, wide
from ttransfer.losses._check import want_labels, want_logits, want_rows


@claims(coupled=True, zero_at_equality=True, non_negative=True, scale_invariant=True, rotation_invariant=True)
def refilled(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 4.0,
    margin: float | Tensor = 0.2,
) -> Tensor:
    r"""Divergence of the student's view of semi-hard triplets from the teacher's.

    .. math::
        \frac{1}{|\mathcal T|} \sum_{(a, p, q) \in \mathcal T} \mathrm{KL}(\rho^t_{apq} \,\|\, \rho^s_{apq}),
        \qquad \rho_{apq} = \sigma \Bigl( \frac{d_{aq} - d_{ap}}{\tau} \Bigr)

    d is the distance of unit vectors; a and p share a class, q is of another. A triplet counts if it is semi-hard
    for the student: 0 < d_aq - d_ap <= margin. Only relations are compared, so that the teacher may have been
    taught other classes. All n³ triplets are looked at at once.

    Args:
        student: embeddings (n, d).
        teacher: embeddings (n, any width); get no gradient.
        labels: classes (n,).
        temperature: τ > 0, in units of distance.
        margin: the largest gap of a triplet that counts.

    Returns:
        A scalar in nats, at least 0; 0 if no triplet counts.

    Raises:
        TransferError: for what are no embeddings of the same rows, with a label for each.

    Example:
        >>> import torch, ttransfer as tt
        >>> student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.1]])  # two triplets, of gap 0.0996
        >>> teacher, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0, 1])
        >>> round(tt.losses.refilled(student, teacher, labels, temperature=1.0).item(), 4)
        0.1159

    Checked against:
        zhijian's Refilled_stage1 over 500, and a loop over triplets.

    Peers:
        zhijian and the authors, whose code multiplies by 1000 and divides by twice the number of triplets. NaN
        where there is none.

    References:
        Han-Jia Ye, Su Lu, De-Chuan Zhan. Distilling Cross-Task Knowledge via Relationship Matching. 2020.
    """
    want_rows("refilled", student=student, teacher=teacher)
    if labels.shape != student.shape[:1] or labels.is_floating_point():
        raise TransferError(
            f"refilled: wanted one class for each row, got student {shown(student)}, labels {shown(labels)}"
        )
    s, t = (distances(unit(x.flatten(1))) for x in wide(student, teacher.detach()))
    gap_s, gap_t = (d[:, None, :] - d[:, :, None] for d in (s, t))  # (anchor, positive, negative)
    same = labels[:, None] == labels
    positive = same & ~torch.eye(labels.shape[0], dtype=torch.bool, device=labels.device)
    # A tie is no triplet, and distances are right to a few roundings.
    tie = 32 * torch.finfo(s.dtype).eps
    easy = (gap_s <= tie) | (gap_s > margin)  # what is not a number is not, so that it shows
    counts = positive[:, :, None] & ~same[:, None, :] & ~easy
    divergence = _divergence(gap_t / temperature, gap_s / temperature)
    return (torch.where(counts, divergence, 0).sum() / counts.sum().clamp_min(1)).to(student.dtype)


def _divergence(t: Tensor, s: Tensor) -> Tensor:
    """KL between two coins, given by their log-odds."""
    # Both outcomes in one: log σ(-x) is log σ(x) - x.
    return F.logsigmoid(t) - F.logsigmoid(s) - (-t).sigmoid() * (t - s)


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    repeat_invariant=True,
    double_backward=True,
)
def refilled_local(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float | Tensor = 2.0) -> Tensor:
    r"""Divergence of softened predictions among the classes that the batch holds.

    .. math::
        \frac1n \sum_i \mathrm{KL}\bigl(
        \mathrm{softmax}_{c \in C}(t_{ic} / T) \,\|\, \mathrm{softmax}_{c \in C}(s_{ic} / T) \bigr),
        \qquad C = \{ y_1, \dots, y_n \}

    A teacher of other classes has no logits for these: the paper takes the inner products of embeddings with the
    class centres in the teacher's space.

    Args:
        student: logits (n, classes).
        teacher: logits (n, classes); get no gradient.
        labels: classes (n,).
        temperature: T > 0.

    Returns:
        A scalar in nats, at least 0; 0 where the batch holds one class only. Without the factor T².

    Raises:
        TransferError: if the shapes differ or are not those of logits with a label for each row.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(2, 3), torch.tensor([[2.0, 0.0, 9.0], [2.0, 0.0, 9.0]])
        >>> round(tt.losses.refilled_local(student, teacher, torch.tensor([0, 1]), temperature=2.0).item(), 4)
        0.1109

    Checked against:
        zhijian's Refilled_stage2, and a loop.

    Peers:
        zhijian and the authors index by the classes found, so that shapes depend on the batch; on a GPU only.

    References:
        Han-Jia Ye, Su Lu, De-Chuan Zhan. Distilling Cross-Task Knowledge via Relationship Matching. 2020.
    """
    want_logits("refilled_local", student=student, teacher=teacher)
    want_labels("refilled_local", student, labels)
    if student.ndim != 2:
        raise TransferError(f"refilled_local: wanted logits (n, classes), got student {shown(student)}")
    s, t = wide(student, teacher.detach())
    there = (labels[:, None] == torch.arange(s.shape[1], device=labels.device)).any(0)
    # Low enough to have no part in any softmax, and finite, so that no gradient is inf - inf.
    lowest = torch.finfo(s.dtype).min / 4
    absent = torch.where(there, s.new_zeros(()), lowest)
    return divergence(s / temperature + absent, t / temperature + absent).mean().to(student.dtype)
