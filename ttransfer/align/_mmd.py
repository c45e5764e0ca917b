"""Maximum mean discrepancy with several Gaussian kernels: three estimators of one distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer.align._check import features
from ttransfer.align._chunks import chunked
from ttransfer.align._kernels import SCALES, Bandwidth, gram, kernel, lifted, off_diagonal_mean, squared_width

__all__ = ["mmd", "mmd_linear", "mmd_unbiased"]

_TAGS: dict[str, Any] = {"symmetric": True, "scale_invariant": True, "rotation_invariant": True}


@claims(coupled=True, zero_at_equality=True, non_negative=True, **_TAGS)
def mmd(
    source: Tensor,
    target: Tensor,
    *,
    bandwidth: Bandwidth = None,
    scales: Sequence[float] = SCALES,
    chunk: int | None = None,
) -> Tensor:
    r"""Squared maximum mean discrepancy, the biased estimate, which is never negative.

    .. math::
        \frac{1}{n^2} \sum_{i,j} k(s_i, s_j) + \frac{1}{m^2} \sum_{i,j} k(t_i, t_j)
        - \frac{2}{nm} \sum_{i,j} k(s_i, t_j), \qquad
        k(x, y) = \sum_u \exp \Bigl( -\frac{\|x - y\|^2}{2 c_u \sigma^2} \Bigr)

    A V-statistic: the diagonal stays in, so that two samples of one distribution give about
    (1/n + 1/m) times the number of kernels rather than 0. It is 0 only if the samples are equal.

    Args:
        source: features (n, d).
        target: features (m, d); m need not be n.
        bandwidth: the width σ > 0 in the features' units, or a function of both domains such as
            `median_bandwidth`. None takes σ² to be the mean squared distance between two rows of the pooled
            batch, without gradient; the loss is then free of the features' scale.
        scales: the c_u, one kernel for each. The default is 2^u, u = -3 ... 1.
        chunk: None keeps all of the kernel, memory (n + m)². A number takes so many of its rows at a time, memory
            (n + m) times that: the same value and gradient, but second derivatives are 0.

    Returns:
        A scalar, at least 0; below twice the number of kernels.

    Raises:
        TransferError: for maps, for widths that differ, for no rows, for no scales.

    Example:
        >>> import torch, ttransfer as tt
        >>> source, target = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0], [0.5]])
        >>> round(tt.align.mmd(source, target, bandwidth=0.5, scales=(1.0,)).item(), 4)
        0.0394
        >>> tt.align.mmd(source, source).item()
        0.0

    Checked against:
        A loop from the paper, and twice geomloss's "gaussian".

    Peers:
        geomloss has half of it, for one kernel. skada has exp(-d/σ) of distances that are not squared, which is
        Laplace's kernel, for 33 widths. DomainBed takes seven fixed widths. TLlib takes the estimate without the
        diagonal and adds 2/(n - 1), so that it is neither: -0.26 for two equal batches and five kernels.

    References:
        Mingsheng Long, Yue Cao, Jianmin Wang, Michael I. Jordan.
        Learning Transferable Features with Deep Adaptation Networks. 2015.
        Arthur Gretton, Karsten M. Borgwardt, Malte J. Rasch, Bernhard Schölkopf, Alexander Smola.
        A Kernel Two-Sample Test. 2012.
    """
    s, t = features("mmd", source, target, rows=1)
    variance = squared_width("mmd", s, t, bandwidth, scales)
    if chunk is None:
        within = gram(s, s, variance, scales).mean() + gram(t, t, variance, scales).mean()
        value = within - 2 * gram(s, t, variance, scales).mean()
    else:
        n, m = s.shape[0], t.shape[0]
        value = chunked("mmd", s, t, variance, scales, chunk, (n**-2, m**-2, 1 / (n * m)))
    return lifted(value).to(torch.promote_types(source.dtype, target.dtype))


@claims(coupled=True, **_TAGS)
def mmd_unbiased(
    source: Tensor,
    target: Tensor,
    *,
    bandwidth: Bandwidth = None,
    scales: Sequence[float] = SCALES,
    chunk: int | None = None,
) -> Tensor:
    r"""Squared maximum mean discrepancy, the unbiased estimate, which **may be negative**.

    .. math::
        \frac{1}{n(n-1)} \sum_{i \neq j} k(s_i, s_j) + \frac{1}{m(m-1)} \sum_{i \neq j} k(t_i, t_j)
        - \frac{2}{nm} \sum_{i,j} k(s_i, t_j)

    A U-statistic: the diagonal is left out. For two samples of one distribution its mean is 0, so that it is
    negative about half of the time, and negative for two equal samples. That is no error; use `mmd` where a
    loss must not be negative. Unbiased holds for a width that is given: one taken from the batch depends on it.

    Args:
        source: features (n, d), n >= 2.
        target: features (m, d), m >= 2; m need not be n.
        bandwidth: as for `mmd`.
        scales: as for `mmd`.
        chunk: as for `mmd`.

    Returns:
        A scalar of either sign.

    Raises:
        TransferError: for maps, for widths that differ, for a domain of one row, for no scales.

    Example:
        >>> import torch, ttransfer as tt
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> round(tt.align.mmd_unbiased(x, x, bandwidth=1.0, scales=(1.0,)).item(), 4)  # exp(-1/2) - 1
        -0.3935

    Checked against:
        A loop from the paper, and pytorch-adapt's MMDLoss("quadratic"), whose kernels are averaged.

    References:
        Arthur Gretton, Karsten M. Borgwardt, Malte J. Rasch, Bernhard Schölkopf, Alexander Smola.
        A Kernel Two-Sample Test. 2012.
    """
    s, t = features("mmd_unbiased", source, target, rows=2)
    variance = squared_width("mmd_unbiased", s, t, bandwidth, scales)
    if chunk is None:
        within = off_diagonal_mean(gram(s, s, variance, scales)) + off_diagonal_mean(gram(t, t, variance, scales))
        value = within - 2 * gram(s, t, variance, scales).mean()
    else:
        n, m = s.shape[0], t.shape[0]
        weights = (1 / (n * (n - 1)), 1 / (m * (m - 1)), 1 / (n * m))
        # On the diagonal every kernel is 1, whatever the rows are.
        value = chunked("mmd_unbiased", s, t, variance, scales, chunk, weights)
        value = value - len(scales) * (1 / (n - 1) + 1 / (m - 1))
    return value.to(torch.promote_types(source.dtype, target.dtype))


@claims(coupled=True, row_symmetric=False, **_TAGS)
def mmd_linear(
    source: Tensor, target: Tensor, *, bandwidth: Bandwidth = None, scales: Sequence[float] = SCALES
) -> Tensor:
    r"""Squared maximum mean discrepancy in linear time, which **may be negative**.

    .. math::
        \frac1p \sum_{i=1}^{p} k(s_{2i-1}, s_{2i}) + k(t_{2i-1}, t_{2i}) - k(s_{2i-1}, t_{2i}) - k(s_{2i}, t_{2i-1}),
        \qquad p = \lfloor \min(n, m) / 2 \rfloor

    Each row is used once: O(nd) time and no Gram matrix, and more variance than `mmd_unbiased`. The estimate
    depends on the order of the rows. Rows after the first 2p of each domain take part in the bandwidth only.

    Args:
        source: features (n, d), n >= 2.
        target: features (m, d), m >= 2; if m is not n the longer one is cut.
        bandwidth: as for `mmd`.
        scales: as for `mmd`.

    Returns:
        A scalar of either sign.

    Raises:
        TransferError: for maps, for widths that differ, for a domain of one row, for no scales.

    Example:
        >>> import torch, ttransfer as tt
        >>> source, target = torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [1.0], [7.0]])
        >>> round(tt.align.mmd_linear(source, target, bandwidth=1.0, scales=(1.0,)).item(), 4)  # 2 - 2 exp(-1/2)
        0.7869

    Checked against:
        A loop from the paper, and pytorch-adapt's MMDLoss("linear"), which computes the whole matrix of distances and
        picks from it.

    References:
        Arthur Gretton, Karsten M. Borgwardt, Malte J. Rasch, Bernhard Schölkopf, Alexander Smola.
        A Kernel Two-Sample Test. 2012.
    """
    s, t = features("mmd_linear", source, target, rows=2)
    variance = squared_width("mmd_linear", s, t, bandwidth, scales)
    end = min(s.shape[0], t.shape[0]) // 2 * 2
    s1, s2, t1, t2 = s[0:end:2], s[1:end:2], t[0:end:2], t[1:end:2]

    def between(x: Tensor, y: Tensor) -> Tensor:
        return kernel((x - y).square().sum(1), variance, scales)

    value = (between(s1, s2) + between(t1, t2) - between(s1, t2) - between(s2, t1)).mean()
    return value.to(torch.promote_types(source.dtype, target.dtype))
