"""Moment tensors of any order: all products of so many features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer.align._check import features, whole
from ttransfer.align._kernels import lifted

__all__ = ["homm"]


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    rotation_invariant=True,
    repeat_invariant=True,
    double_backward=True,
)
def homm(source: Tensor, target: Tensor, *, order: int = 3, variant: Literal["paper", "code"] = "paper") -> Tensor:
    r"""Mean squared difference of the domains' moments of one order: of the means of all products of p features.

    .. math:: \frac{1}{d^p} \Bigl\| \frac1n \sum_i s_i^{\otimes p} - \frac1m \sum_j t_j^{\otimes p} \Bigr\|_F^2
        = \frac{1}{d^p} \Bigl[ \overline{(s \cdot s')^p} + \overline{(t \cdot t')^p} - 2 \, \overline{(s \cdot t)^p}
        \Bigr]

    A bar is a mean over pairs of rows. The tensor has d^p entries; the paper takes a part of them at random, or groups
    of 30 features at a time. By the right side all of them cost no more than the rows' inner products, and nothing is
    random. Order 1 is the distance of the means. The authors' code takes the means off first, so that its order 2 is
    the covariances' distance, four times `coral` but for its n instead of n - 1.

    The authors warn of a ReLU before it, after which most products are 0; they use tanh.

    Args:
        source: features (n, d).
        target: features (m, d); m need not be n.
        order: p, how many features are multiplied; the paper has 3 and 4.
        variant: "paper" compares moments about 0, "code" those about each domain's own mean, from order 2 on.

    Returns:
        A scalar, at least 0, in the 2p-th power of the features' units.

    Raises:
        TransferError: for maps, for widths that differ, for no rows; for an order below 1, or 2 in the code's variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> source = torch.tensor([[-1.0], [-1.0], [2.0]])  # third moments 2 and -2; means and variances are alike
        >>> round(tt.align.homm(source, -source).item(), 4), tt.align.coral(source, -source).item()
        (16.0, 0.0)

    Checked against:
        The tensors, entry by entry.

    Peers:
        AdaTime has order 3 of the code's variant by the tensor itself, memory n · d³. The authors' code for any order
        draws 300 000 entries of the tensor, and never one with the last feature.

    References:
        Chao Chen, Zhihang Fu, Zhihong Chen, Sheng Jin, Zhaowei Cheng, Xinyu Jin, Xian-Sheng Hua.
        HoMM: Higher-order Moment Matching for Unsupervised Domain Adaptation. 2020.
    """
    s, t = features("homm", source, target, rows=1)
    if variant not in ("paper", "code"):
        raise TransferError(f"homm: wanted variant 'paper' or 'code', got {variant!r}")
    whole("homm", 1 if variant == "paper" else 2, order=order)
    if variant == "code":
        s, t = s - s.mean(0), t - t.mean(0)
    by = s.shape[1]

    def products(x: Tensor, y: Tensor) -> Tensor:
        return ((x @ y.mT) / by).pow(order).mean()

    value = products(s, s) + products(t, t) - 2 * products(s, t)
    return lifted(value).to(torch.promote_types(source.dtype, target.dtype))
