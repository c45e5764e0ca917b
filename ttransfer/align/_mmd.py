"""Maximum mean discrepancy with several Gaussian kernels: three estimators of one distance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer.align._check import features

_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


@claims(coupled=True)
def mmd(
    source: Tensor, target: Tensor, *, bandwidth: float | Tensor | None = None, scales: Sequence[float] = _SCALES
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
        bandwidth: the width σ > 0 in the features' units. None takes σ² to be the mean squared distance
            between two rows of the pooled batch, without gradient; the loss is then free of the features' scale.
        scales: the c_u, one kernel for each. The default is 2^u, u = -3 ... 1.

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

    References:
        Mingsheng Long, Yue Cao, Jianmin Wang, Michael I. Jordan.
        Learning Transferable Features with Deep Adaptation Networks. 2015.
        Arthur Gretton, Karsten M. Borgwardt, Malte J. Rasch, Bernhard Schölkopf, Alexander Smola.
        A Kernel Two-Sample Test. 2012.
    """
    s, t, variance = _prepare("mmd", source, target, bandwidth, scales, rows=1)
    within = _gram(s, s, variance, scales).mean() + _gram(t, t, variance, scales).mean()
    value = within - 2 * _gram(s, t, variance, scales).mean()
    # Rounding may leave -1e-8. The value is lifted to 0, the gradient stays.
    return (value - value.detach().clamp_max(0)).to(torch.promote_types(source.dtype, target.dtype))


@claims(coupled=True)
def mmd_unbiased(
    source: Tensor, target: Tensor, *, bandwidth: float | Tensor | None = None, scales: Sequence[float] = _SCALES
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

    Returns:
        A scalar of either sign.

    Raises:
        TransferError: for maps, for widths that differ, for a domain of one row, for no scales.

    Example:
        >>> import torch, ttransfer as tt
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> round(tt.align.mmd_unbiased(x, x, bandwidth=1.0, scales=(1.0,)).item(), 4)  # exp(-1/2) - 1
        -0.3935

    References:
        Arthur Gretton, Karsten M. Borgwardt, Malte J. Rasch, Bernhard Schölkopf, Alexander Smola.
        A Kernel Two-Sample Test. 2012.
    """
    s, t, variance = _prepare("mmd_unbiased", source, target, bandwidth, scales, rows=2)
    within = _off_diagonal_mean(_gram(s, s, variance, scales)) + _off_diagonal_mean(_gram(t, t, variance, scales))
    value = within - 2 * _gram(s, t, variance, scales).mean()
    return value.to(torch.promote_types(source.dtype, target.dtype))


@claims(coupled=True)
def mmd_linear(
    source: Tensor, target: Tensor, *, bandwidth: float | Tensor | None = None, scales: Sequence[float] = _SCALES
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

    References:
        Arthur Gretton, Karsten M. Borgwardt, Malte J. Rasch, Bernhard Schölkopf, Alexander Smola.
        A Kernel Two-Sample Test. 2012.
    """
    s, t, variance = _prepare("mmd_linear", source, target, bandwidth, scales, rows=2)
    end = min(s.shape[0], t.shape[0]) // 2 * 2
    s1, s2, t1, t2 = s[0:end:2], s[1:end:2], t[0:end:2], t[1:end:2]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return _kernel((x - y).square().sum(1), variance, scales)

    value = (kernel(s1, s2) + kernel(t1, t2) - kernel(s1, t2) - kernel(s2, t1)).mean()
    return value.to(torch.promote_types(source.dtype, target.dtype))


def _prepare(
    called: str,
    source: Tensor,
    target: Tensor,
    bandwidth: float | Tensor | None,
    scales: Sequence[float],
    *,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Return both domains, checked, and σ²."""
    if len(scales) == 0:
        raise TransferError(f"{called}: wanted at least one scale, got {scales!r}")
    source, target = features(called, source, target, rows=rows)
    if bandwidth is not None:
        return source, target, bandwidth**2
    pooled = torch.cat([source, target]).detach()
    # The mean squared distance over pairs i != j is twice the total variance: no matrix is needed.
    variance = 2 * (pooled - pooled.mean(0)).square().sum() / (pooled.shape[0] - 1)
    # Rows that coincide up to rounding have no scale; 1 keeps the kernel at 1 and its gradient finite.
    rounding = (8 * torch.finfo(pooled.dtype).eps) ** 2 * pooled.square().sum(1).mean()
    return source, target, torch.where(variance > rounding, variance, 1.0)


def _kernel(squared: Tensor, variance: Tensor | float, scales: Sequence[float]) -> Tensor:
    """Sum the Gaussians over the scales."""
    terms = [(squared / (-2 * scale * variance)).exp() for scale in scales]
    return torch.stack(terms).sum(0)


def _gram(x: Tensor, y: Tensor, variance: Tensor | float, scales: Sequence[float]) -> Tensor:
    """Return the kernel between all rows of x and all rows of y, (n, m)."""
    # Distances do not see a shift, and ||x||² + ||y||² - 2xy cancels least where y has no mean.
    shift = y.detach().mean(0)
    x, y = x - shift, y - shift
    squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.mT
    # Rounding is lifted to 0 without clamping: at rows that coincide the second derivative would be lost.
    return _kernel(squared - squared.detach().clamp_max(0), variance, scales)


def _off_diagonal_mean(gram: Tensor) -> Tensor:
    n = gram.shape[0]
    return (gram.sum() - gram.diagonal().sum()) / (n * (n - 1))
