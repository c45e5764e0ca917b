"""Focal and global distillation of a detector's feature maps."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_alike, want_floats, want_maps

__all__ = ["box_mask", "fgd_focal", "fgd_global"]


@claims(coupled=False, zero_at_equality=True, non_negative=True)
def fgd_focal(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    alpha: float | Tensor = 1e-3,
    beta: float | Tensor = 5e-4,
    gamma: float | Tensor = 1e-3,
    temperature: float | Tensor = 0.5,
) -> Tensor:
    r"""Distance from the teacher's feature maps, objects and background apart, and by the teacher's attention.

    .. math::
        \frac1n \sum_i \sum_{p,c} \Bigl( \alpha m_{i,p} + \frac{\beta \, [m_{i,p} = 0]}{|\{q : m_{i,q} = 0\}|} \Bigr)
        S^t_{i,p} C^t_{i,c} (s_{i,c,p} - t_{i,c,p})^2
        + \gamma \bigl( \| S^s_i - S^t_i \|_1 + \| C^s_i - C^t_i \|_1 \bigr)

    .. math::
        S_{i,p} = P \, \mathrm{softmax}_p \Bigl( \frac{1}{cT} \sum_c |x_{i,c,p}| \Bigr), \qquad
        C_{i,c} = c \, \mathrm{softmax}_c \Bigl( \frac{1}{PT} \sum_p |x_{i,c,p}| \Bigr)

    P is the number of positions, c that of channels. The other half of the method is `fgd_global`. The defaults are
    those of the authors' code.

    Args:
        student: maps (n, c, h, w), brought to the teacher's channels.
        teacher: maps of the same shape; gets no gradient.
        mask: (n, h, w), 0 for background, and for an object 1 over its area, so that large ones do not count for
            more: `box_mask`.
        alpha: the weight of objects.
        beta: the weight of background.
        gamma: the weight of attention.
        temperature: T > 0 of attention, in units of the features.

    Returns:
        A scalar, at least 0: the mean over maps.

    Raises:
        TransferError: for what is no map, for shapes that differ.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.full((1, 1, 1, 2), 3.0), torch.full((1, 1, 1, 2), 5.0)
        >>> mask = torch.tensor([[[1.0, 0.0]]])
        >>> round(tt.losses.fgd_focal(student, teacher, mask, alpha=1.0, beta=0.5).item(), 4)  # 4 + 2
        6.0

    Checked against:
        A loop from the paper.

    Peers:
        The authors' code is the same, on a mask of its own: see `box_mask`.

    References:
        Zhendong Yang, Zhe Li, Xiaohu Jiang, Yuan Gong, Zehuan Yuan, Danpei Zhao, Chun Yuan.
        Focal and Global Knowledge Distillation for Detectors. 2022.
    """
    want_maps("fgd_focal", student=student, teacher=teacher)
    n, _, *space = student.shape
    if mask.shape != (n, *space):
        raise TransferError(f"fgd_focal: wanted a mask {(n, *space)}, one number for each position, got {shown(mask)}")
    s, t = (x.flatten(2) for x in wide(student, teacher.detach()))
    m = mask.detach().to(s.dtype).flatten(1)
    s_space, s_channel = _attention(s, temperature)
    t_space, t_channel = _attention(t, temperature)
    empty = (m == 0).to(s.dtype)
    by = alpha * m + beta * empty / empty.sum(1, keepdim=True).clamp_min(1)
    focal = (by * t_space * ((s - t).square() * t_channel[:, :, None]).sum(1)).sum(1)
    attention = (s_space - t_space).abs().sum(1) + (s_channel - t_channel).abs().sum(1)
    return (focal + gamma * attention).mean().to(torch.promote_types(student.dtype, teacher.dtype))


@claims(coupled=False, non_negative=True, double_backward=True, not_stationary="the two contexts may differ")
def fgd_global(student: Tensor, teacher: Tensor, context: Tensor, reference_context: Tensor) -> Tensor:
    r"""Distance of feature maps from the teacher's, each with the context that a GcBlock of its own adds to it.

    .. math:: \frac1n \sum_i \| (s_i + g_i) - (t_i + g'_i) \|^2

    A GcBlock pools a map by a learned attention over positions and runs the result, one number for each channel,
    through two small layers. Both blocks are learned, the teacher's too, so that both contexts get a gradient.
    The paper weighs it by 5e-6.

    Args:
        student: maps (n, c, h, w), brought to the teacher's channels.
        teacher: maps of the same shape; gets no gradient.
        context: g, (n, c), what the student's block makes of the student's maps.
        reference_context: g', (n, c), what the teacher's block makes of the teacher's maps.

    Returns:
        A scalar, at least 0, in squared units of the features: the mean over maps, the sum over channels and positions.

    Raises:
        TransferError: for what is no map, for shapes that differ.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]])
        >>> context, other = torch.tensor([[1.0]]), torch.tensor([[0.0]])
        >>> tt.losses.fgd_global(student, teacher, context, other).item()  # 0 + 4
        4.0

    Checked against:
        A loop from the paper.

    Peers:
        The authors' code is the same, with the blocks inside.

    References:
        Zhendong Yang, Zhe Li, Xiaohu Jiang, Yuan Gong, Zehuan Yuan, Danpei Zhao, Chun Yuan.
        Focal and Global Knowledge Distillation for Detectors. 2022.
    """
    want_maps("fgd_global", student=student, teacher=teacher)
    want_alike("fgd_global", context=context, reference_context=reference_context)
    if context.shape != student.shape[:2]:
        raise TransferError(
            f"fgd_global: wanted contexts {tuple(student.shape[:2])}, one number for each channel, got {shown(context)}"
        )
    s, t, own, other = wide(student, teacher.detach(), context, reference_context)
    gap = (s - t) + (own - other)[:, :, None, None]
    value = gap.square().flatten(1).sum(1).mean()
    return value.to(torch.promote_types(student.dtype, teacher.dtype))


def _attention(x: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Over positions and over channels: (n, c, p) -> (n, p), (n, c), each 1 on average."""
    size = x.abs()
    space, channel = size.mean(1) / temperature, size.mean(2) / temperature
    return x.shape[2] * space.softmax(1), x.shape[1] * channel.softmax(1)


def box_mask(boxes: Tensor, *, height: int, width: int) -> Tensor:
    r"""The mask of `fgd_focal` from boxes: 1 over the area of the smallest box around a position, 0 outside all.

    Args:
        boxes: (n, k, 4), as x0, y0, x1, y1 in parts of the image, from 0 to 1. A box of no area is none: so images of
            fewer than k boxes are filled up.
        height: of the map.
        width: of the map.

    Returns:
        (n, height, width); the area is in positions, those that a box touches.

    Raises:
        TransferError: for what are no boxes, or no size.

    Example:
        >>> import torch, ttransfer as tt
        >>> boxes = torch.tensor([[[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]]])
        >>> tt.losses.box_mask(boxes, height=1, width=4)
        tensor([[[0.5000, 0.5000, 0.0000, 0.0000]]])

    Checked against:
        A loop over positions.

    Peers:
        The authors' code fills a mask (height, width) by [x, y], so that objects are mirrored on the diagonal, and
        takes one row and one column more at the far side.

    References:
        Zhendong Yang, Zhe Li, Xiaohu Jiang, Yuan Gong, Zehuan Yuan, Danpei Zhao, Chun Yuan.
        Focal and Global Knowledge Distillation for Detectors. 2022.
    """
    want_floats("box_mask", boxes=boxes)
    if boxes.ndim != 3 or boxes.shape[2] != 4 or height < 1 or width < 1:
        raise TransferError(f"box_mask: wanted boxes (n, k, 4) and a size, got {shown(boxes)}, {height} x {width}")
    (b,) = wide(boxes)
    x0, y0, x1, y1 = b.unbind(2)
    there = (x1 > x0) & (y1 > y0)
    (left, right), (top, bottom) = (
        ((low * size).floor().clamp(0, size - 1), (high * size).ceil().clamp(1, size))
        for low, high, size in ((x0, x1, width), (y0, y1, height))
    )
    column = torch.arange(width, device=b.device, dtype=b.dtype)
    row = torch.arange(height, device=b.device, dtype=b.dtype)
    inside_x = (column >= left[:, :, None]) & (column < right[:, :, None])
    inside_y = (row >= top[:, :, None]) & (row < bottom[:, :, None])
    inside = inside_y[:, :, :, None] & inside_x[:, :, None, :] & there[:, :, None, None]
    by = 1 / ((right - left) * (bottom - top)).clamp_min(1)
    scales = torch.where(inside, by[:, :, None, None], 0)
    # Of no boxes there is no largest.
    none = scales.new_zeros(boxes.shape[0], 1, height, width)
    return torch.cat([scales, none], 1).amax(1).to(boxes.dtype)
