"""Instance relationship graph: distances between examples, and from layer to layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import gram, wide
from ttransfer.losses._check import want_maps, want_rows


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    scale_invariant=True,
    rotation_invariant=True,
    repeat_invariant=True,
    double_backward=True,
)
def irg(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared difference of the graphs' edges: of relative squared distances between examples.

    .. math::
        \frac{1}{n^2} \sum_{i,j} \Bigl( \frac{D^s_{ij}}{\max D^s} - \frac{D^t_{ij}}{\max D^t} \Bigr)^2, \qquad
        D_{ij} = \| f_i - f_j \|^2

    The edges of one layer. The graph's vertices are compared by `F.mse_loss` of the logits, and the changes from
    layer to layer by `irg_transform`; zhijian weighs them 0.1 (vertices), 5 (edges) and 5 (changes).

    Args:
        student: features (n, ...), vectors or maps.
        teacher: features (n, ...), of any width; get no gradient.

    Returns:
        A scalar without units, from 0 to 1. 0 for one row; rows that all coincide have no distances.

    Raises:
        TransferError: for features of other rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [2.0], [2.0]])
        >>> round(tt.losses.irg(student, teacher).item(), 4)  # 2 (0.75² + 0.25²) / 9
        0.1389

    Checked against:
        zhijian's IRG, edges only, and a loop.

    Peers:
        zhijian; where all rows coincide its clamp at 1e-12 puts every distance at the largest. The authors' code
        is Caffe.

    References:
        Yufan Liu, Jiajiong Cao, Bing Li, Chunfeng Yuan, Weiming Hu, Yangxi Li, Yunqiang Duan.
        Knowledge Distillation via Instance Relationship Graph. 2019.
    """
    want_rows("irg", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    return F.mse_loss(_relative(_squared(s)), _relative(_squared(t))).to(student.dtype)


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    scale_invariant=True,
    repeat_invariant=True,
    double_backward=True,
)
def irg_transform(student: Tensor, student_next: Tensor, teacher: Tensor, teacher_next: Tensor) -> Tensor:
    r"""Mean squared difference of how far two layers move an example, relative to the batch's farthest.

    .. math::
        \frac1n \sum_i \Bigl( \frac{\Lambda^s_i}{\max \Lambda^s} - \frac{\Lambda^t_i}{\max \Lambda^t} \Bigr)^2, \qquad
        \Lambda_i = \| F_i - F'_i \|^2

    Of each net, the earlier map is pooled to the later one's size, and the later one's channels, if there are k
    times as many, are averaged by k neighbours.

    Args:
        student: maps (n, channels, height, width).
        student_next: maps of a later layer (n, k · channels, ...), not larger.
        teacher: maps of the same rows, of any channels and size; get no gradient.
        teacher_next: maps of a later layer; get no gradient.

    Returns:
        A scalar without units, from 0 to 1.

    Raises:
        TransferError: for what are no maps of the same rows, or channels that are no multiple.

    Example:
        >>> import torch, ttransfer as tt
        >>> near, far = torch.zeros(2, 1, 1, 1), torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)
        >>> tt.losses.irg_transform(near, far, near, 3 * far.flip(0)).item()  # (1/4 - 1)²
        0.5625

    Checked against:
        zhijian's IRG, transformation only, and a loop.

    Peers:
        zhijian, for twice the channels only.

    References:
        Yufan Liu, Jiajiong Cao, Bing Li, Chunfeng Yuan, Weiming Hu, Yangxi Li, Yunqiang Duan.
        Knowledge Distillation via Instance Relationship Graph. 2019.
    """
    given = {"student": student, "student_next": student_next, "teacher": teacher, "teacher_next": teacher_next}
    want_maps("irg_transform", channels=False, space=False, **given)
    s, s_next, t, t_next = wide(student, student_next, teacher.detach(), teacher_next.detach())
    return F.mse_loss(_relative(_moved(s, s_next)), _relative(_moved(t, t_next))).to(student.dtype)


def _squared(x: Tensor) -> Tensor:
    """Squared distances between rows: (n, ...) -> (n, n)."""
    # Distances do not see a shift, and the squares cancel least around the mean.
    products = gram(x - x.detach().mean(0))
    squares = products.diagonal()
    sums = squares[:, None] + squares
    apart = sums - 2 * products
    # What is left of rows that coincide is rounding, which the largest distance must not be.
    return torch.where(apart <= 8 * torch.finfo(x.dtype).eps * sums, 0, apart)


def _moved(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances (n,) of an earlier and a later map."""
    if second.shape[1] % first.shape[1]:
        raise TransferError(
            f"irg_transform: wanted a later map with a multiple of the channels, "
            f"got {shown(first)} and then {shown(second)}; bring them to one width with an adapter"
        )
    first = F.adaptive_avg_pool2d(first, (second.shape[2], second.shape[3]))
    second = second.unflatten(1, (first.shape[1], -1)).mean(2)
    return (first - second).square().flatten(1).sum(1)


def _relative(x: Tensor) -> Tensor:
    largest = x.max()
    return x / torch.where(largest <= 0, 1, largest)
