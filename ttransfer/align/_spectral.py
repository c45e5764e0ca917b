"""Losses of one batch's singular values: features not dominated by one direction, predictions of high rank."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer._numeric import finite, wide
from ttransfer.align._check import items, rows_of, want_logits, whole
from ttransfer.align._singular import nuclear_norm

__all__ = ["bnm", "bsp"]


@claims(coupled=True, non_negative=True, row_symmetric=True, rotation_invariant=True)
def bsp(features: Tensor, *, k: int = 1) -> Tensor:
    r"""Batch spectral penalisation: the squares of the largest singular values of a batch of features.

    .. math:: \sum_{i=1}^k \sigma_i^2

    The paper adds it for the source and for the target, two terms here, to adversarial alignment, weighted by
    0.0002. It grows with the number of rows. Where the k-th value is repeated the gradient is one of several.

    Args:
        features: of one domain, (n, d).
        k: how many.

    Returns:
        A scalar, at least 0, in the square of the features' units.

    Raises:
        TransferError: for maps, for no rows, for k below 1.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.bsp(torch.tensor([[3.0, 0.0], [0.0, 2.0]])).item()
        9.0

    Checked against:
        pytorch-adapt's BatchSpectralLoss, and the eigenvalues of the Gram matrix in NumPy.

    Peers:
        pytorch-adapt has it; TLlib for both domains at once and k = 1, by whole decompositions whose
        gradient is not finite where values repeat.

    References:
        Xinyang Chen, Sinan Wang, Mingsheng Long, Jianmin Wang. Transferability vs. Discriminability:
        Batch Spectral Penalization for Adversarial Domain Adaptation. 2019.
    """
    x = rows_of("bsp", features)
    whole("bsp", 1, k=k)
    x, rest = finite(x)
    return (torch.linalg.svdvals(x)[:k].square().sum() + rest).to(features.dtype)


@claims(coupled=True, row_symmetric=True, class_symmetric=True, shift_invariant=True)
def bnm(logits: Tensor) -> Tensor:
    r"""Batch nuclear-norm maximisation: predictions that are sure and of many classes.

    .. math:: -\frac1n \|P\|_* = -\frac1n \sum_i \sigma_i(P), \qquad P = \mathrm{softmax}(z) \in \mathbb R^{n \times C}

    Args:
        logits: of the target, (n, classes).

    Returns:
        A scalar below 0, at least minus the root of classes/n or of 1, whichever is less.

    Raises:
        TransferError: for what are no logits (n, classes) of at least two classes.

    Example:
        >>> import torch, ttransfer as tt
        >>> sure = 1000 * torch.eye(2)
        >>> round(tt.align.bnm(sure).item(), 4), round(tt.align.bnm(sure[[0, 0]]).item(), 4)  # 1, root of 1/2
        (-1.0, -0.7071)

    Checked against:
        pytorch-adapt's BNMLoss, and the eigenvalues of the Gram matrix in NumPy.

    Peers:
        pytorch-adapt has it. The authors' later code takes the mean over singular values in place of rows.

    References:
        Shuhao Cui, Shuhui Wang, Junbao Zhuo, Liang Li, Qingming Huang, Qi Tian. Towards Discriminability and Diversity:
        Batch Nuclear-norm Maximization under Label Insufficient Situations. 2020.
    """
    want_logits("bnm", logits=logits)
    if logits.ndim != 2:
        raise TransferError(f"bnm: wanted logits (n, classes), got {items(logits=logits)}")
    (z,) = wide(logits)
    return (-nuclear_norm(z.softmax(1)) / z.shape[0]).to(logits.dtype)
