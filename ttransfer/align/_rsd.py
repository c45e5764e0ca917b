"""Representation subspace distance: the spans of two batches, and their bases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import root
from ttransfer.align._check import features
from ttransfer.align._singular import nuclear_norm, singular

__all__ = ["rsd"]


@claims(coupled=True, zero_at_equality=True, non_negative=True, scale_invariant=True, rotation_invariant=True)
def rsd(source: Tensor, target: Tensor, *, penalty: float | Tensor = 0.1) -> Tensor:
    r"""Sines of the angles between the spans of two batches, and how differently their bases lie to these.

    .. math::
        \| \sin \Theta \|_1 + \beta \, \bigl\| |P_s| - |P_t| \bigr\|_F, \qquad
        U_s^\top U_t = P_s \, \cos \Theta \, P_t^\top

    U holds the right singular vectors of a batch's features, the largest value first; Θ are the principal angles
    between the rows' spans, of which there are min(n, m). Lengths of features do not count, for which regression is
    said to be sensitive. It is for batches smaller than the width: with n >= d the spans are everything, the angles 0,
    and the bases' penalty depends on a choice that the decomposition makes.

    The sines are the singular values of what one basis leaves outside of the other span, which is accurate for small
    angles, where the root of 1 - cos² is not. A direction without extent is in no span. Where n is not m, the missing
    vectors of the smaller basis count as zeros. It has no second derivative.

    Args:
        source: features (n, d).
        target: features (m, d); m need not be n, though in the paper it is.
        penalty: β, of the bases.

    Returns:
        A scalar without unit, at least 0.

    Raises:
        TransferError: for maps, for widths that differ, for no rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> source, target = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]])
        >>> round(tt.align.rsd(source, target).item(), 4)  # the sine of their angle
        0.8

    Checked against:
        SciPy's subspace_angles, and the formula by torch's whole decompositions, with their gradient.

    Peers:
        TLlib has it, by three whole decompositions, whose gradients are not finite where singular values repeat, and
        by the root of 1 - cos², whose gradient is not finite where spans meet, as for two equal batches.

    References:
        Xinyang Chen, Sinan Wang, Jianmin Wang, Mingsheng Long.
        Representation Subspace Distance for Domain Adaptation Regression. 2021.
    """
    s, t = features("rsd", source, target, rows=1)
    one, other = singular(s)[2], singular(t)[2]
    wide, narrow = (one, other) if one.shape[1] >= other.shape[1] else (other, one)
    sines = nuclear_norm(narrow - wide @ (wide.mT @ narrow), size=1.0)
    in_source, _, in_target = singular(one.mT @ other)
    rows = max(in_source.shape[0], in_target.shape[0])
    gap = _padded(in_source, rows).abs() - _padded(in_target, rows).abs()
    # Where the bases lie alike, what is left of their difference is rounding, which has no slope.
    total = gap.square().sum()
    differ = total.detach() > (8 * rows * torch.finfo(s.dtype).eps) ** 2
    value = sines + penalty * root(torch.where(differ, total, 0))
    return value.to(torch.promote_types(source.dtype, target.dtype))


def _padded(x: Tensor, rows: int) -> Tensor:
    return F.pad(x, (0, 0, 0, rows - x.shape[0]))
