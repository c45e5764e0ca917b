"""Hierarchical context loss: maps compared at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import wide
from ttransfer.losses._check import want_maps


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    repeat_invariant=True,
    double_backward=True,
)
def hcl(student: Tensor, teacher: Tensor, *, sizes: Sequence[int] = (4, 2, 1)) -> Tensor:
    r"""Mean squared error of maps and of what they are when pooled, the coarser the less: ReviewKD's loss.

    .. math:: \frac{\sum_{k=0}^{K} 2^{-k} \, \mathrm{mse} \bigl( P_k s, P_k t \bigr)}{\sum_{k=0}^{K} 2^{-k}}

    P₀ leaves the map as it is, and P_k averages it to the k-th of those sizes that are below its height. The
    student's maps are those that ReviewKD has fused over its layers, all of the teacher's shape.

    Args:
        student: maps (n, channels, height, width), after fusion.
        teacher: maps of the same shape; gets no gradient.
        sizes: heights (and widths) to pool to, the finest first.

    Returns:
        A scalar, at least 0, in the square of the features' units: a weighted mean over scales. For several layers,
        add; the paper's weights are 1 to 8.

    Raises:
        TransferError: if the shapes differ, or for what is no map.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(1, 1, 2, 2), torch.tensor([[[[2.0, -2.0], [0.0, 0.0]]]])
        >>> round(tt.losses.hcl(student, teacher).item(), 4)  # (2 + 0 / 2) / 1.5
        1.3333

    Checked against:
        torchdistill's HierarchicalContextLoss, and a loop from the paper.

    Peers:
        torchdistill and mdistiller have it; both pool both sides, where pooling the difference is enough.

    References:
        Pengguang Chen, Shu Liu, Hengshuang Zhao, Jiaya Jia. Distilling Knowledge via Knowledge Review. 2021.
    """
    want_maps("hcl", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    gap = s - t
    value, weight, total = _mean_square(gap), 1.0, 1.0
    for size in sizes:
        if size < gap.shape[2]:
            weight /= 2
            total += weight
            value = value + weight * _mean_square(F.adaptive_avg_pool2d(gap, size))
    return (value / total).to(torch.promote_types(student.dtype, teacher.dtype))


def _mean_square(x: Tensor) -> Tensor:
    # The gradient of a mean fills a tensor, that of a sum does not.
    return x.square().sum() / x.numel()
