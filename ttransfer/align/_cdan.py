"""What a conditional critic looks at: features and predictions multiplied out."""

from __future__ import annotations

import math

from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.align._check import items, same_rows, want_tensors

__all__ = ["multilinear", "multilinear_random"]


def multilinear(features: Tensor, predictions: Tensor) -> Tensor:
    r"""Outer product of features and predictions, what the critic of CDAN looks at.

    .. math:: h_i = f_i \otimes g_i

    Args:
        features: (n, d).
        predictions: probabilities of classes (n, c), softmax taken.

    Returns:
        (n, d · c): all classes by the first feature, then by the second.

    Raises:
        TransferError: for what is not (n, d) and (n, c).

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.multilinear(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.25, 0.75]]))
        tensor([[0.2500, 0.7500, 0.5000, 1.5000]])

    Checked against:
        A loop.

    Peers:
        pytorch-adapt, skada, ADAPT and TLlib have it. skada multiplies by logits where others take probabilities.

    References:
        Mingsheng Long, Zhangjie Cao, Jianmin Wang, Michael I. Jordan.
        Conditional Adversarial Domain Adaptation. 2018.
    """
    _want("multilinear", features, predictions)
    return (features[:, :, None] * predictions[:, None, :]).flatten(1)


def multilinear_random(features: Tensor, predictions: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""Random products of features and predictions, whose inner products are on average those of `multilinear`.

    .. math:: h_i = \frac{1}{\sqrt k} (f_i L) \odot (g_i R)

    Where the entries of L and R are independent of mean 0 and variance 1, as normal ones are,
    the inner product of two rows of h is on average that of the outer products.

    Args:
        features: (n, d).
        predictions: probabilities of classes (n, c), softmax taken.
        left: L, (d, k); drawn once and kept.
        right: R, (c, k).

    Returns:
        (n, k).

    Raises:
        TransferError: for shapes that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> f, g, ones = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.25, 0.75]]), torch.ones(2, 4)
        >>> tt.align.multilinear_random(f, g, ones, ones)  # 3 * 1 / 2
        tensor([[1.5000, 1.5000, 1.5000, 1.5000]])

    Checked against:
        pytorch-adapt's RandomizedDotProduct, and the mean over many draws.

    References:
        Mingsheng Long, Zhangjie Cao, Jianmin Wang, Michael I. Jordan.
        Conditional Adversarial Domain Adaptation. 2018.
    """
    _want("multilinear_random", features, predictions)
    want_tensors("multilinear_random", left=left, right=right)
    fits = left.ndim == 2 and left.shape[0] == features.shape[1]
    if not fits or right.shape != (predictions.shape[1], left.shape[1]):
        raise TransferError(
            "multilinear_random: wanted matrices (d, k) and (c, k), got "
            + items(features=features, predictions=predictions, left=left, right=right)
        )
    return (features @ left) * (predictions @ right) / math.sqrt(left.shape[1])


def _want(called: str, features: Tensor, predictions: Tensor) -> None:
    want_tensors(called, features=features, predictions=predictions)
    if features.ndim != 2 or predictions.ndim != 2:
        raise TransferError(
            f"{called}: wanted features (n, d) and predictions (n, c), got "
            + items(features=features, predictions=predictions)
        )
    same_rows(called, features=features, predictions=predictions)
