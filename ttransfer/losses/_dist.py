"""Distillation of relations: correlated predictions in place of equal ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import wide
from ttransfer.losses._check import want_logits, want_maps

# What has a smaller norm counts as without direction, as in the authors' code.
_EPS = 1e-8


@claims(coupled=True, non_negative=True, shift_invariant=True, class_symmetric=True, double_backward=True)
def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float | Tensor = 1.0,
    gamma: float | Tensor = 1.0,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    r"""One minus the correlation of predictions: of each row over the classes, of each class over the rows.

    .. math::
        T^2 \Bigl[ \beta \Bigl(1 - \frac1n \sum_i \rho(p^s_i, p^t_i)\Bigr)
        + \gamma \Bigl(1 - \frac1c \sum_j \rho(p^s_{\cdot j}, p^t_{\cdot j})\Bigr) \Bigr],
        \qquad p = \mathrm{softmax}(z / T)

    ρ is Pearson's correlation, so that a student may differ from its teacher by a positive scale and a shift of
    probabilities. A row that is uniform, and a class of the same probability in all rows, correlates with nothing and
    counts 1: a single row has the second part at γ, without gradient. Of maps each position is a row.

    Args:
        student: logits (n, classes) or (n, classes, ...).
        teacher: logits of the same shape; gets no gradient.
        beta: weight of the rows' part (inter-class).
        gamma: weight of the classes' part (intra-class).
        temperature: T > 0; the paper has 1 on ImageNet and 4 on CIFAR-100.

    Returns:
        A scalar without units, from 0 to 2 T² (β + γ).

    Raises:
        TransferError: if the shapes differ or are not those of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> student = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> round(tt.losses.dist(student, student.flip(1)).item(), 4)  # opposite: 2 for the rows, 2 for the classes
        4.0
        >>> round(tt.losses.dist(student, 3 * student).item(), 4)
        0.0

    Checked against:
        torchdistill's DISTLoss, and a loop from the paper.

    Peers:
        torchdistill's DISTLoss is the same, but for a teacher that gets a gradient. MMRazor's has weights of 2 in
        its configurations.

    References:
        Tao Huang, Shan You, Fei Wang, Chen Qian, Chang Xu. Knowledge Distillation from A Stronger Teacher. 2022.
    """
    want_logits("dist", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    return _dist(s, t, beta, gamma, temperature).to(torch.promote_types(student.dtype, teacher.dtype))


@claims(coupled=True, non_negative=True, double_backward=True)
def dist_plus(
    student: Tensor,
    teacher: Tensor,
    student_map: Tensor,
    teacher_map: Tensor,
    *,
    beta: float | Tensor = 1.0,
    gamma: float | Tensor = 1.0,
    iota: float | Tensor = 1.0,
    kappa: float | Tensor = 1.0,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    r"""`dist` of predictions, and one minus the correlation of feature maps over channels and over rows.

    .. math::
        \mathrm{dist}(s, t) + \iota \Bigl(1 - \frac{1}{n h w} \sum_{i, u} \rho(f^s_{i \cdot u}, f^t_{i \cdot u})\Bigr)
        + \kappa \Bigl(1 - \frac{1}{h w} \sum_u \rho(a^s_{\cdot u}, a^t_{\cdot u})\Bigr),
        \qquad a_{iu} = \sum_k f_{iku}

    The first added part correlates the channels at each position of each example (channel relation), the second the
    rows' sums over the channels at each position (spatial relation). What is constant counts 1.

    Args:
        student: logits (n, classes) or (n, classes, ...).
        teacher: logits of the same shape; gets no gradient.
        student_map: features (n, channels, height, width), projected to the teacher's channels.
        teacher_map: features of the same shape; gets no gradient.
        beta: weight of the rows' part of `dist`.
        gamma: weight of the classes' part of `dist`.
        iota: weight of the channels' part.
        kappa: weight of the positions' part.
        temperature: T > 0 of `dist`.

    Returns:
        A scalar without units, from 0 to 2 T² (β + γ) + 2 (ι + κ).

    Raises:
        TransferError: if the logits' or the maps' shapes differ or are not such.

    Example:
        >>> import torch, ttransfer as tt
        >>> logits, maps = torch.eye(2), torch.tensor([1.0, -2.0, 3.0, 5.0]).reshape(2, 2, 1, 1)
        >>> round(tt.losses.dist_plus(logits, logits, maps, maps).item(), 4)
        0.0
        >>> round(tt.losses.dist_plus(logits, logits, maps, -maps).item(), 4)  # opposite: 2 and 2
        4.0

    Checked against:
        torchdistill's DISTPlusLoss but for the sign of the channels' part, and a loop.

    Peers:
        torchdistill's DISTPlusLoss adds the channels' correlation itself, not one minus it: it drives the student's
        channels against the teacher's, and equal maps are not the lowest.

    References:
        Tao Huang, Shan You, Fei Wang, Chen Qian, Chang Xu.
        DIST+: Knowledge Distillation From a Stronger Adaptive Teacher. 2025.
    """
    want_logits("dist_plus", student=student, teacher=teacher)
    want_maps("dist_plus", student_map=student_map, teacher_map=teacher_map)
    s, t, f, g = wide(student, teacher.detach(), student_map, teacher_map.detach())
    value = _dist(s, t, beta, gamma, temperature)
    value = value + iota * _apart(f, g, 1) + kappa * _apart(f.sum(1), g.sum(1), 0)
    return value.to(torch.promote_types(student.dtype, teacher.dtype))


def _dist(s: Tensor, t: Tensor, beta: float | Tensor, gamma: float | Tensor, temperature: float | Tensor) -> Tensor:
    p, q = (_rows(x / temperature).softmax(1) for x in (s, t))
    return temperature**2 * (beta * _apart(p, q, 1) + gamma * _apart(p, q, 0))


def _rows(x: Tensor) -> Tensor:
    """Positions as rows: (n, classes, ...) -> (rows, classes)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _apart(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """One minus the mean correlation along an axis."""
    x, to_unit_x = _centred(x, dim)
    y, to_unit_y = _centred(y, dim)
    value = 1 - ((x * y).sum(dim, keepdim=True) * to_unit_x * to_unit_y).mean()
    # Rounding may leave -1e-8. The value is lifted to 0, the gradient stays.
    return value - value.detach().clamp_max(0)


def _centred(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Without the mean, and one over the norm of that; 0 for what is constant, with a slope of 0."""
    mean = x.mean(dim, keepdim=True)
    centred = x - mean
    squares = centred.square().sum(dim, keepdim=True)
    # What rounding leaves of equal numbers has no direction either.
    whole = (squares + x.shape[dim] * mean.square()).detach()
    rounding = ((8 * torch.finfo(x.dtype).eps) ** 2 * whole).clamp_min(_EPS**2)
    varied = squares.detach() > rounding
    return centred, torch.where(varied, torch.where(varied, squares, 1).rsqrt(), 0)
