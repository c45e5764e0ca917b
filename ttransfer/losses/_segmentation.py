"""Distillation of dense predictions: every position by itself, with a mask, and boundaries apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import divergence, wide
from ttransfer.losses._check import want_labels, want_logits

__all__ = ["boundary_kd", "pixel_kd"]

_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _kept(student: Tensor, teacher: Any = None, mask: Tensor | None = None) -> Tensor | int:
    return student.shape[0] if mask is None else mask.sum()


@claims(
    coupled=False,
    count=_kept,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    double_backward=True,
)
def pixel_kd(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, temperature: float | Tensor = 1.0
) -> Tensor:
    r"""Divergence of the student's softened predictions from the teacher's, over the positions of a mask.

    .. math::
        \frac{T^2}{\sum_p m_p} \sum_p m_p \, \mathrm{KL}\bigl(\mathrm{softmax}(t_p / T) \,\|\, \mathrm{softmax}(s_p / T)
        \bigr)

    The positions p are those of all maps together: a map of which little is kept counts for little. Where labels mark
    what is to be ignored, a term reads the mask from them: ``tt.read("source.y") | (lambda y: y != 255)``.

    Args:
        student: logits (n, classes, ...).
        teacher: logits of the same shape; gets no gradient.
        mask: (n, ...), True or 1 where a position counts; any weight that is at least 0. None is all.
        temperature: T > 0, in units of the logits.

    Returns:
        A scalar in nats, at least 0 (up to rounding): the mean over positions; 0 if none is kept.

    Raises:
        TransferError: if the shapes differ or are not those of logits and of a mask.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(1, 2, 1, 2), torch.tensor([[[[60.0, 0.0]], [[0.0, 7.0]]]])
        >>> kept = torch.tensor([[[True, False]]])
        >>> round(tt.losses.pixel_kd(student, teacher, kept).item(), 4)  # log 2
        0.6931

    Checked against:
        `kd` on the positions that are kept, and a loop from the paper.

    Peers:
        MMRazor and torchdistill take `kl_div` over whole maps; without a mask, positions that the labels ignore count.

    References:
        Yifan Liu, Ke Chen, Chris Liu, Zengchang Qin, Zhenbo Luo, Jingdong Wang.
        Structured Knowledge Distillation for Semantic Segmentation. 2019.
    """
    want_logits("pixel_kd", student=student, teacher=teacher)
    rows = _divergence(student, teacher, temperature)
    if mask is None:
        return rows.mean().to(torch.promote_types(student.dtype, teacher.dtype))
    if mask.shape != rows.shape:
        raise TransferError(f"pixel_kd: wanted a mask {tuple(rows.shape)}, one for each position, got {shown(mask)}")
    m = mask.detach().to(rows.dtype)
    kept = m.sum()
    value = (m * rows).sum() / torch.where(kept > 0, kept, 1)
    return value.to(torch.promote_types(student.dtype, teacher.dtype))


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    double_backward=True,
)
def boundary_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    width: int = 1,
    edge: float | Tensor = 1.0,
    body: float | Tensor = 1.0,
    ignore_index: int = -100,
) -> Tensor:
    r"""Divergence from the teacher's predictions at boundaries and away from them, each with its own mean.

    .. math::
        \frac1n \sum_i \Bigl( \frac{\lambda_e}{|E_i|} \sum_{p \in E_i} D_p + \frac{\lambda_b}{|B_i|} \sum_{p \in B_i}
        D_p \Bigr), \qquad
        D_p = T^2 \, \mathrm{KL}\bigl(\mathrm{softmax}(t_p / T) \,\|\, \mathrm{softmax}(s_p / T)\bigr)

    E are the positions of a map that have another class within `width`, B the others. Boundaries are a small part of
    a map, so that in a mean over all positions they count for little. The paper has two losses of different kinds for
    the two; this one takes its idea of two parts, and one divergence for both.

    Args:
        student: logits (n, classes, ...), of one to three axes of space.
        teacher: logits of the same shape; gets no gradient.
        labels: (n, ...) of whole numbers, from which boundaries are taken; None takes the teacher's classes.
        temperature: T > 0, in units of the logits.
        width: how far from another class a boundary reaches, in positions along each axis, at least 1.
        edge: the weight λ of boundaries.
        body: the weight λ of what is no boundary.
        ignore_index: a label whose positions count in neither part, nor make a boundary.

    Returns:
        A scalar in nats, at least 0 (up to rounding): the mean over maps. A part without positions adds 0.

    Raises:
        TransferError: if the shapes differ or are not those of maps and labels, or for a width below 1.

    Example:
        >>> import torch, ttransfer as tt
        >>> labels = torch.tensor([[0, 0, 0, 1, 1, 1]])  # a boundary of two positions
        >>> student, teacher = torch.zeros(1, 2, 6), torch.zeros(1, 2, 6)
        >>> teacher[0, 0, 2] = 60.0  # the teacher is sure at one of them
        >>> round(tt.losses.boundary_kd(student, teacher, labels).item(), 4)  # log 2 / 2
        0.3466

    Checked against:
        A loop over positions, and `kd` where everything is boundary.

    Peers:
        None has it.

    References:
        Liyang Liu, Zihan Wang, Minh Hieu Phan, Bowen Zhang, Jinchao Ge, Yifan Liu.
        BPKD: Boundary Privileged Knowledge Distillation For Semantic Segmentation. 2024.
    """
    want_logits("boundary_kd", student=student, teacher=teacher)
    if student.ndim not in (3, 4, 5):
        raise TransferError(f"boundary_kd: wanted one to three axes of space, got {shown(student)}")
    if width < 1:
        raise TransferError(f"boundary_kd: wanted a width of at least 1, got {width}")
    rows = _divergence(student, teacher, temperature)
    if labels is None:
        labels = teacher.detach().argmax(1)
    else:
        want_labels("boundary_kd", student, labels)
    valid = labels != ignore_index
    edges = _edges(labels, valid, width)
    value = edge * _by_map(rows, edges & valid) + body * _by_map(rows, ~edges & valid)
    return value.mean().to(torch.promote_types(student.dtype, teacher.dtype))


def _divergence(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """T² KL at each position: (n, classes, ...) -> (n, ...)."""
    s, t = wide(student, teacher.detach())
    return temperature**2 * divergence(s / temperature, t / temperature)


def _edges(labels: Tensor, valid: Tensor, width: int) -> Tensor:
    """Where the labels of a window differ: its largest is not its smallest. Pooling pads with -inf."""
    pool = _POOLS[labels.ndim - 1]
    x = labels.to(torch.float32)[:, None]
    valid = valid[:, None]
    largest, smallest = (
        pool(torch.where(valid, y, -torch.inf), 2 * width + 1, stride=1, padding=width) for y in (x, -x)
    )
    return ((largest > -smallest) & valid)[:, 0]


def _by_map(rows: Tensor, kept: Tensor) -> Tensor:
    """The mean over a map's kept positions: (n, ...) -> (n,)."""
    kept = kept.to(rows.dtype).flatten(1)
    return (rows.flatten(1) * kept).sum(1) / kept.sum(1).clamp_min(1)
