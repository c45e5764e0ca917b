"""Relational distillation: distances and angles between examples."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import distances, wide
from ttransfer.losses._check import want_rows

_TAGS: dict[str, Any] = {
    "zero_at_equality": True,
    "non_negative": True,
    "symmetric": True,
    "scale_invariant": True,
    "rotation_invariant": True,
    "double_backward": True,
}


@claims(coupled=True, **_TAGS)
def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Huber distance between the relative distances of pairs of examples.

    .. math:: \frac1{n^2} \sum_{i,j} h \Bigl( \frac{\|s_i - s_j\|}{\mu_s} - \frac{\|t_i - t_j\|}{\mu_t} \Bigr),
        \qquad \mu = \frac1{n(n-1)} \sum_{i \neq j} \|x_i - x_j\|

    h is half the square up to 1, and linear from there. The paper sums over pairs; like all code this takes
    the mean over n², to which an example's pair with itself adds 0. Where all examples coincide all distances
    are 0. The widths may differ.

    Args:
        student: features (n, d) or maps (n, ...).
        teacher: features or maps of the same n; gets no gradient.

    Returns:
        A scalar without unit, at least 0.

    Raises:
        TransferError: if the numbers of rows differ, or for rows that are single numbers.

    Example:
        >>> import torch, ttransfer as tt
        >>> line, triangle = torch.tensor([[0.0], [1.0], [2.0]]), torch.eye(3)
        >>> round(tt.losses.rkd_distance(line, triangle).item(), 4)  # 3 / 72
        0.0417

    Checked against:
        torchdistill's RKDLoss, zhijian's RKD, and a loop from the paper.

    Peers:
        torchdistill, RepDistiller, mdistiller, MMRazor, KD_Lib and zhijian have it; all select the positive
        distances by a mask, whose shape depends on the data, and one row gives NaN. They take examples that
        coincide to be 1e-6 apart, and if all do, to be all equally far apart. In float32 the gradient of their
        distances is off by 40 % where clusters are a thousandth as wide as they are apart.

    References:
        Wonpyo Park, Dongju Kim, Yan Lu, Minsu Cho. Relational Knowledge Distillation. 2019.
    """
    want_rows("rkd_distance", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    return _by_distance(_lengths(s), _lengths(t)).to(torch.promote_types(student.dtype, teacher.dtype))


@claims(coupled=True, **_TAGS)
def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Huber distance between the angles that triplets of examples form.

    .. math:: \frac1{n^3} \sum_{i,j,k} h \bigl( \cos\angle s_j s_i s_k - \cos\angle t_j t_i t_k \bigr), \qquad
        \cos\angle x_j x_i x_k =
        \Bigl\langle \frac{x_j - x_i}{\|x_j - x_i\|}, \frac{x_k - x_i}{\|x_k - x_i\|} \Bigr\rangle

    h is half the square up to 1, and linear from there; a cosine at two examples that coincide is 0. The paper
    sums over triplets; like all code this takes the mean over n³, whose other terms are 0. Time and
    memory grow with n³; the width counts for n² only. The widths may differ.

    Args:
        student: features (n, d) or maps (n, ...).
        teacher: features or maps of the same n; gets no gradient.

    Returns:
        A scalar without unit, from 0 to 1.5.

    Raises:
        TransferError: if the numbers of rows differ, or for rows that are single numbers.

    Example:
        >>> import torch, ttransfer as tt
        >>> line, triangle = torch.tensor([[0.0], [1.0], [2.0]]), torch.eye(3)
        >>> round(tt.losses.rkd_angle(line, triangle).item(), 4)  # 2.5 / 27
        0.0926

    Checked against:
        torchdistill's RKDLoss, zhijian's RKD, and a loop from the paper.

    Peers:
        torchdistill, RepDistiller, mdistiller, MMRazor, KD_Lib and zhijian have it, all by an array of n² · d.

    References:
        Wonpyo Park, Dongju Kim, Yan Lu, Minsu Cho. Relational Knowledge Distillation. 2019.
    """
    want_rows("rkd_angle", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    value = F.smooth_l1_loss(_cosines(_lengths(s)), _cosines(_lengths(t)))
    return value.to(torch.promote_types(student.dtype, teacher.dtype))


@claims(coupled=True, **_TAGS)
def rkd(student: Tensor, teacher: Tensor, *, distance: float | Tensor = 25.0, angle: float | Tensor = 50.0) -> Tensor:
    r"""Relational knowledge distillation: weighted sum of `rkd_distance` and `rkd_angle`.

    .. math:: \lambda_D \, L_D + \lambda_A \, L_A

    Args:
        student: features (n, d) or maps (n, ...).
        teacher: features or maps of the same n; gets no gradient.
        distance: the weight of `rkd_distance`. The defaults are those for classification; for metric learning
            the paper has 1 and 2.
        angle: the weight of `rkd_angle`.

    Returns:
        A scalar without unit, at least 0.

    Raises:
        TransferError: if the numbers of rows differ, or for rows that are single numbers.

    Example:
        >>> import torch, ttransfer as tt
        >>> line, triangle = torch.tensor([[0.0], [1.0], [2.0]]), torch.eye(3)
        >>> round(tt.losses.rkd(line, triangle).item(), 4)  # 25 * 3 / 72 + 50 * 2.5 / 27
        5.6713

    Checked against:
        torchdistill's RKDLoss, zhijian's RKD, and a loop from the paper.

    Peers:
        As of `rkd_distance` and `rkd_angle`. torchdistill gives no defaults for the weights.

    References:
        Wonpyo Park, Dongju Kim, Yan Lu, Minsu Cho. Relational Knowledge Distillation. 2019.
    """
    want_rows("rkd", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    s, t = _lengths(s), _lengths(t)
    value = distance * _by_distance(s, t) + angle * F.smooth_l1_loss(_cosines(s), _cosines(t))
    return value.to(torch.promote_types(student.dtype, teacher.dtype))


def _by_distance(s: Tensor, t: Tensor) -> Tensor:
    return F.smooth_l1_loss(_relative(s), _relative(t))


def _relative(lengths: Tensor) -> Tensor:
    """Distances by their mean over pairs of two examples."""
    n = lengths.shape[0]
    mean = lengths.sum() / max(n * (n - 1), 1)
    return lengths / torch.where(mean <= 0, 1, mean)


def _lengths(x: Tensor) -> Tensor:
    """Distances between rows. In float64, where there is one: those of close rows are small differences."""
    precise = x if x.device.type == "mps" else x.double()
    return distances(precise).to(x.dtype)


def _cosines(lengths: Tensor) -> Tensor:
    """The cosines of the angles at i between j and k, (n, n, n), by the law of cosines: no array of n² · d."""
    squares = lengths.square()
    # Rows that are apart by rounding alone have no direction.
    same = lengths <= 8 * torch.finfo(lengths.dtype).eps * lengths.detach().amax()
    inverse = torch.where(same, 0, 1 / torch.where(same, 1, lengths))
    between = (squares[:, :, None] + squares[:, None, :] - squares) / 2
    return between * inverse[:, :, None] * inverse[:, None, :]
