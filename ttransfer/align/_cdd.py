"""Contrastive domain discrepancy: near within a class, far between classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer.align._check import features, row_labels
from ttransfer.align._kernels import SCALES, Bandwidth, gram, squared_width

__all__ = ["cdd"]


@claims(coupled=True, symmetric=True, scale_invariant=True, rotation_invariant=True)
def cdd(
    source: Tensor,
    target: Tensor,
    source_labels: Tensor,
    target_labels: Tensor,
    *,
    bandwidth: Bandwidth = None,
    scales: Sequence[float] = SCALES,
) -> Tensor:
    r"""Discrepancy of the domains within classes, less that between classes: **negative** where classes are apart.

    .. math::
        \frac1M \sum_c D_{cc} - \frac{1}{M(M-1)} \sum_{c \neq c'} D_{cc'}, \qquad
        D_{cc'} = \overline{k(s, s')}_{s, s' \in c} + \overline{k(t, t')}_{t, t' \in c'}
        - 2 \, \overline{k(s, t)}_{s \in c, \, t \in c'}

    k is the kernel of `mmd`; a bar is a mean over pairs. The M classes are those that both domains have in the batch;
    with one class there is no second sum, with none the value is 0. With one width for all classes the means within
    a domain cancel as soon as M > 1, and what remains is twice the mean of k between classes less that within them:
    by gradient, only pairs across the domains move. The authors' code does without that by giving each pair
    of classes a width of its own, their mean squared distance; the paper does not mention it. Its weight there is 0.3.

    Args:
        source: features (n, d).
        target: features (m, d); m need not be n.
        source_labels: (n,) whole numbers; a row with a negative one does not count.
        target_labels: (m,), such as the clusters that the paper finds by spherical k-means; negative for rows that
            are ambiguous, or of a class with too few.
        bandwidth: as for `mmd`.
        scales: as for `mmd`.

    Returns:
        A scalar of either sign.

    Raises:
        TransferError: for maps, for widths that differ, for no rows or scales, for labels that are not one each row.

    Example:
        >>> import torch, ttransfer as tt
        >>> rows, labels = torch.tensor([[0.0], [100.0]]), torch.tensor([0, 1])
        >>> tt.align.cdd(rows, rows, labels, labels, bandwidth=1.0, scales=(1.0,)).item()  # 0 within, 2 between
        -2.0

    Checked against:
        A loop from the paper over pairs of classes.

    Peers:
        skada has it wrongly: within a domain it sums over pairs of which only one row is of the class, between domains
        it divides by the square of the number of pairs, and it sums each two classes once and divides as if twice. On
        two classes of 4 rows each it is 0.60, where the formula with its kernel gives -0.41.

    References:
        Guoliang Kang, Lu Jiang, Yi Yang, Alexander G. Hauptmann.
        Contrastive Adaptation Network for Unsupervised Domain Adaptation. 2019.
    """
    s, t = features("cdd", source, target, rows=1)
    row_labels("cdd", source, source_labels)
    row_labels("cdd", target, target_labels)
    variance = squared_width("cdd", s, t, bandwidth, scales)
    across = source_labels[:, None] == target_labels
    across = across & (source_labels >= 0)[:, None]
    # A row's weight is one by the rows of its class and domain, so that weights sum to the number of classes.
    one = _weights(source_labels, across.any(1), s.dtype)
    other = _weights(target_labels, across.any(0), s.dtype)
    same_source = source_labels[:, None] == source_labels
    same_target = target_labels[:, None] == target_labels
    within = _total(one, one, gram(s, s, variance, scales) * same_source)
    within = within + _total(other, other, gram(t, t, variance, scales) * same_target)
    between = gram(s, t, variance, scales)
    own, every = _total(one, other, between * across), _total(one, other, between)
    classes = one.sum().round()
    several = classes > 1
    intra = within - 2 * own
    inter = (classes - 1) * within - 2 * (every - own)
    value = intra / classes.clamp_min(1) - torch.where(
        several, inter / torch.where(several, classes * (classes - 1), 1), 0
    )
    return value.to(torch.promote_types(source.dtype, target.dtype))


def _weights(labels: Tensor, counts: Tensor, dtype: torch.dtype) -> Tensor:
    return counts.to(dtype) / (labels[:, None] == labels).sum(1)


def _total(one: Tensor, other: Tensor, kernels: Tensor) -> Tensor:
    return one @ kernels @ other
