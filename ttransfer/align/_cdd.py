"""Contrastive domain discrepancy: near within a class, far between classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer.align._check import classes_of, features, row_labels, whole
from ttransfer.align._distances import squared_distances
from ttransfer.align._kernels import SCALES, Bandwidth, gram, kernel, squared_width

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
    classes: int | None = None,
    variant: Literal["paper", "code"] = "paper",
) -> Tensor:
    r"""Discrepancy of the domains within classes, less that between classes: **negative** where classes are apart.

    .. math::
        \frac1M \sum_c D_{cc} - \frac{1}{M(M-1)} \sum_{c \neq c'} D_{cc'}, \qquad
        D_{cc'} = \overline{k(s, s')}_{s, s' \in c} + \overline{k(t, t')}_{t, t' \in c'}
        - 2 \, \overline{k(s, t)}_{s \in c, \, t \in c'}

    k is the kernel of `mmd`; a bar is a mean over pairs. The M classes are those that both domains have in the batch;
    with one class there is no second sum, with none the value is 0. With one width for all classes the means within
    a domain cancel as soon as M > 1, and what remains is twice the mean of k between classes less that within them:
    by gradient, only pairs across the domains move.

    The authors' code gives each pair of classes c, c' a width of its own, the mean squared distance between two rows
    of those of c in the source and of c' in the target, so that nothing cancels; the paper does not mention it. And M
    is the number of all classes, whether or not the batch has them. The code adds the values of features and of
    probabilities, two terms here, with the weight 0.3.

    Args:
        source: features (n, d).
        target: features (m, d); m need not be n.
        source_labels: (n,) whole numbers; a row with a negative one does not count.
        target_labels: (m,), such as the clusters that the paper finds by spherical k-means; negative for rows that
            are ambiguous, or of a class with too few.
        bandwidth: as for `mmd`.
        scales: as for `mmd`.
        classes: how many there are in all; for the code's variant alone, which needs it. Memory then is its product
            with n² + m².
        variant: "paper" has one width for all classes, and means over those of the batch; "code" has one for each pair
            of classes, unless `bandwidth` says which, and divides by the number of all classes and of all pairs.

    Returns:
        A scalar of either sign.

    Raises:
        TransferError: for maps, for widths that differ, for no rows or scales, for labels that are not one each row or,
            where they can be looked at, none of the classes; for another variant, or classes that do not go with it.

    Example:
        >>> import torch, ttransfer as tt
        >>> rows, labels = torch.tensor([[0.0], [100.0]]), torch.tensor([0, 1])
        >>> tt.align.cdd(rows, rows, labels, labels, bandwidth=1.0, scales=(1.0,)).item()  # 0 within, 2 between
        -2.0
        >>> value = tt.align.cdd(rows, rows, labels, labels, classes=3, variant="code", bandwidth=1.0, scales=(1.0,))
        >>> round(value.item(), 4)  # two pairs of classes of six
        -0.6667

    Checked against:
        A loop from the paper over pairs of classes, and one after the authors' code.

    Peers:
        The authors' code beyond the variant: it lifts d²/σ² to 1e-5 and cuts it at 1e5, without gradient.
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
    if variant not in ("paper", "code"):
        raise TransferError(f"cdd: wanted variant 'paper' or 'code', got {variant!r}")
    if (classes is None) != (variant == "paper"):
        raise TransferError(
            f"cdd: wanted classes= for variant 'code' and for no other, got {classes!r} with variant {variant!r}"
        )
    if classes is not None:
        value = _by_pairs(s, t, source_labels, target_labels, bandwidth, scales, classes)
        return value.to(torch.promote_types(source.dtype, target.dtype))
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
    count = one.sum().round()
    several = count > 1
    intra = within - 2 * own
    inter = (count - 1) * within - 2 * (every - own)
    value = intra / count.clamp_min(1) - torch.where(several, inter / torch.where(several, count * (count - 1), 1), 0)
    return value.to(torch.promote_types(source.dtype, target.dtype))


def _weights(labels: Tensor, counts: Tensor, dtype: torch.dtype) -> Tensor:
    return counts.to(dtype) / (labels[:, None] == labels).sum(1)


def _total(one: Tensor, other: Tensor, kernels: Tensor) -> Tensor:
    return one @ kernels @ other


def _by_pairs(
    s: Tensor,
    t: Tensor,
    source_labels: Tensor,
    target_labels: Tensor,
    bandwidth: Bandwidth,
    scales: Sequence[float],
    classes: int,
) -> Tensor:
    """The authors' code: a width for each pair of classes, and sums divided by the numbers of all."""
    whole("cdd", 1, classes=classes)
    classes_of("cdd", classes, least=None, source_labels=source_labels, target_labels=target_labels)
    every = torch.arange(classes, device=s.device)
    one, other = ((y[:, None] == every).to(s.dtype) for y in (source_labels, target_labels))
    n, m = one.sum(0), other.sum(0)
    variance = _widths(s, t, one, other) if bandwidth is None else squared_width("cdd", s, t, bandwidth, scales)
    variance = torch.as_tensor(variance, dtype=s.dtype, device=s.device).expand(classes, classes)
    mean, mean_other = one / n.clamp_min(1), other / m.clamp_min(1)
    # A row of no class has the first one's widths, and the weight 0.
    y, z = (labels.long().clamp_min(0) for labels in (source_labels, target_labels))

    def within(x: Tensor, mean: Tensor, widths: Tensor) -> Tensor:
        """The mean kernel of the rows of each class, by the width of its pair with each other class."""
        kernels = kernel(squared_distances(x, x)[:, :, None], widths[:, None], scales)
        return mean.mT @ ((mean @ (mean > 0).to(x.dtype).mT)[:, :, None] * kernels).sum(1)

    across = kernel(squared_distances(s, t), variance[y][:, z], scales)
    gaps = within(s, mean, variance[y]) + within(t, mean_other, variance.mT[z]).mT
    gaps = gaps - 2 * mean.mT @ across @ mean_other
    there = (n > 0) & (m > 0)
    gaps = gaps * (there[:, None] & there)
    intra = gaps.diagonal().sum()
    return intra / classes - (gaps.sum() - intra) / max(classes * (classes - 1), 1)


def _widths(s: Tensor, t: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """The mean squared distance between two rows of a class in the source and one in the target, for each pair."""
    # Classes may be narrow beside their distance: in float64, where there is one.
    precise = s.dtype if s.device.type == "mps" else torch.float64
    x, y, members, others = (a.detach().to(precise) for a in (s, t, one, other))
    size = torch.cat([x, y]).square().sum(1).mean()
    middle = torch.cat([x, y]).mean(0)
    x, y, n, m = x - middle, y - middle, members.sum(0), others.sum(0)
    centres, aims = members.mT @ x / n.clamp_min(1)[:, None], others.mT @ y / m.clamp_min(1)[:, None]
    scatter = (members.mT @ (x - members @ centres).square()).sum(1)
    scattered = (others.mT @ (y - others @ aims).square()).sum(1)
    both = n[:, None] + m
    apart = n[:, None] * m / both.clamp_min(1) * squared_distances(centres, aims)
    variance = 2 * (scatter[:, None] + scattered + apart) / (both - 1).clamp_min(1)
    # Rows that coincide up to rounding have no scale, as in `mean_square`.
    rounding = max((8 * torch.finfo(s.dtype).eps) ** 2, 8 * torch.finfo(precise).eps) * size
    return torch.where(variance <= rounding, 1.0, variance).to(s.dtype)
