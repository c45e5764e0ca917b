"""Joint maximum mean discrepancy: several layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer.align._check import features
from ttransfer.align._kernels import SCALES, Bandwidth, gram, lifted, off_diagonal_mean, squared_width

__all__ = ["jmmd", "jmmd_unbiased"]

Layers = Tensor | Sequence[Tensor]
_TAGS: dict[str, Any] = {"symmetric": True, "scale_invariant": True}


@claims(coupled=True, zero_at_equality=True, non_negative=True, **_TAGS)
def jmmd(
    source: Layers,
    target: Layers,
    *,
    bandwidth: Bandwidth | Sequence[Bandwidth] = None,
    scales: Sequence[float] = SCALES,
) -> Tensor:
    r"""Joint maximum mean discrepancy: of the joint distributions of several layers' features.

    .. math::
        \frac{1}{n^2} \sum_{i,j} \prod_l k_l(s^l_i, s^l_j) + \frac{1}{m^2} \sum_{i,j} \prod_l k_l(t^l_i, t^l_j)
        - \frac{2}{nm} \sum_{i,j} \prod_l k_l(s^l_i, t^l_j), \qquad
        k_l(x, y) = \sum_u \exp \Bigl( -\frac{\|x - y\|^2}{2 c_u \sigma_l^2} \Bigr)

    Layers of which each alone has the same distribution in both domains may differ jointly. The biased estimate,
    as `mmd` is. The authors read the features before the classifier and its softmax.

    Args:
        source: a list of features (n, d_l), one for each layer, or one tensor (n, layers, d).
        target: likewise, of m rows; m need not be n.
        bandwidth: as for `mmd`, for all layers, or a list of one for each.
        scales: as for `mmd`.

    Returns:
        A scalar, at least 0; below twice the number of kernels to the power of the number of layers.

    Raises:
        TransferError: for other layers in the target, for maps, for widths that differ, for no rows, for no scales.

    Example:
        >>> import torch, ttransfer as tt
        >>> a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]])
        >>> tt.align.mmd(a, b, bandwidth=1.0).item()
        0.0
        >>> round(tt.align.jmmd([a, a], [a, b], bandwidth=1.0, scales=(1.0,)).item(), 4)  # 1 + exp(-1) - 2 exp(-1/2)
        0.1548

    Checked against:
        A loop from the paper.

    Peers:
        pytorch-adapt has `jmmd_unbiased`. TLlib has it without the diagonal, with a constant added.

    References:
        Mingsheng Long, Han Zhu, Jianmin Wang, Michael I. Jordan.
        Deep Transfer Learning with Joint Adaptation Networks. 2017.
    """
    ss, tt, st = _products("jmmd", source, target, bandwidth, scales, rows=1)
    return lifted(ss.mean() + tt.mean() - 2 * st.mean()).to(_dtype(source, target))


@claims(coupled=True, **_TAGS)
def jmmd_unbiased(
    source: Layers,
    target: Layers,
    *,
    bandwidth: Bandwidth | Sequence[Bandwidth] = None,
    scales: Sequence[float] = SCALES,
) -> Tensor:
    r"""Joint maximum mean discrepancy, the unbiased estimate, which **may be negative**.

    .. math::
        \frac{1}{n(n-1)} \sum_{i \neq j} \prod_l k_l(s^l_i, s^l_j)
        + \frac{1}{m(m-1)} \sum_{i \neq j} \prod_l k_l(t^l_i, t^l_j) - \frac{2}{nm} \sum_{i,j} \prod_l k_l(s^l_i, t^l_j)

    What is said of `mmd_unbiased` beside `mmd` holds for it beside `jmmd`.

    Args:
        source: as for `jmmd`, n >= 2.
        target: likewise, m >= 2.
        bandwidth: as for `jmmd`.
        scales: as for `mmd`.

    Returns:
        A scalar of either sign.

    Raises:
        TransferError: as `jmmd`, and for a domain of one row.

    Example:
        >>> import torch, ttransfer as tt
        >>> a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]])
        >>> value = tt.align.jmmd_unbiased([a, a], [a, b], bandwidth=1.0, scales=(1.0,))
        >>> round(value.item(), 4)  # 2 exp(-1) - 2 exp(-1/2)
        -0.4773

    Checked against:
        A loop from the paper, and pytorch-adapt's MMDLoss("quadratic") of lists.

    References:
        Mingsheng Long, Han Zhu, Jianmin Wang, Michael I. Jordan.
        Deep Transfer Learning with Joint Adaptation Networks. 2017.
    """
    ss, tt, st = _products("jmmd_unbiased", source, target, bandwidth, scales, rows=2)
    value = off_diagonal_mean(ss) + off_diagonal_mean(tt) - 2 * st.mean()
    return value.to(_dtype(source, target))


def _products(
    called: str,
    source: Layers,
    target: Layers,
    bandwidth: Bandwidth | Sequence[Bandwidth],
    scales: Sequence[float],
    rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The products over layers of the kernels within the source, within the target, and between them."""
    given_source, given_target = _listed(called, "source", source), _listed(called, "target", target)
    layers = len(given_source)
    widths = list(bandwidth) if isinstance(bandwidth, Sequence) else [bandwidth] * layers
    if layers == 0 or layers != len(given_target) or layers != len(widths):
        raise TransferError(
            f"{called}: wanted features of the same layers, and one bandwidth or one for each, got source "
            f"{shown(given_source)}, target {shown(given_target)} and {len(widths)} bandwidths"
        )
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for a, b, width in zip(given_source, given_target, widths, strict=True):
        s, t = features(called, a, b, rows=rows)
        if s.shape[0] != given_source[0].shape[0] or t.shape[0] != given_target[0].shape[0]:
            raise TransferError(
                f"{called}: wanted the same rows in all layers, got source {shown(given_source)} "
                f"and target {shown(given_target)}"
            )
        variance = squared_width(called, s, t, width, scales)
        parts.append((gram(s, s, variance, scales), gram(t, t, variance, scales), gram(s, t, variance, scales)))
    ss, tt, st = parts[0]
    for a, b, c in parts[1:]:
        ss, tt, st = ss * a, tt * b, st * c
    return ss, tt, st


def _listed(called: str, name: str, layers: Layers) -> list[Tensor]:
    if not isinstance(layers, Tensor):
        if not isinstance(layers, Sequence) or not all(isinstance(x, Tensor) for x in layers):
            raise TransferError(
                f"{called}: wanted a tensor, or a list of one for each layer, got {name} {shown(layers)}"
            )
        return list(layers)
    return list(layers.unbind(1)) if layers.ndim > 1 else [layers]


def _dtype(source: Layers, target: Layers) -> torch.dtype:
    first, other = (x if isinstance(x, Tensor) else x[0] for x in (source, target))
    return torch.promote_types(first.dtype, other.dtype)
