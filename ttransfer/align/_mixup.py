"""Mixup: rows between rows, of inputs and of labels alike."""

from __future__ import annotations

from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.align._check import classes_of, in_range, want_tensors


def mixup(x: Tensor, partners: Tensor, *, ratio: float | Tensor) -> Tensor:
    r"""Mix each row with another: a point on the line between them.

    .. math:: \lambda_i x_i + (1 - \lambda_i) x_{\pi(i)}

    Inputs are mixed, and by the same partners and ratios labels as class probabilities; `F.cross_entropy` takes such.
    Across domains, or across classes, is a matter of who the partners are.

    Args:
        x: (n, ...), inputs, features, or one-hot labels.
        partners: π, whole numbers (n,): the row that each is mixed with, often a permutation.
        ratio: λ from 0 to 1, one number or (n,); in the paper drawn from Beta(α, α) with α = 1 for CIFAR and 0.2 for
            ImageNet.

    Returns:
        Rows like those of `x`.

    Raises:
        TransferError: for partners or ratios that do not fit, or for labels that are whole numbers.

    Example:
        >>> import torch, ttransfer as tt
        >>> x, partners = torch.tensor([[0.0], [4.0]]), torch.tensor([1, 0])
        >>> tt.align.mixup(x, partners, ratio=0.75).flatten()
        tensor([1., 3.])

    Checked against:
        A loop. The cross-entropy with mixed labels is the mixed cross-entropy, as peers have it.

    Peers:
        DomainBed mixes each pair of domains with one λ, and mixes the two cross-entropies instead of the labels.

    References:
        Hongyi Zhang, Moustapha Cisse, Yann N. Dauphin, David Lopez-Paz.
        mixup: Beyond Empirical Risk Minimization. 2018.
    """
    want_tensors("mixup", x=x, partners=partners)
    in_range("mixup", 0.0, 1.0, closed=True, ratio=ratio)
    if x.ndim == 0 or not x.is_floating_point():
        raise TransferError(
            f"mixup: wanted floating rows, got {shown(x)}; make labels one-hot first: "
            "(y[:, None] == torch.arange(classes)).float()"
        )
    if partners.shape != x.shape[:1] or partners.is_floating_point():
        raise TransferError(f"mixup: wanted a partner for each row of {shown(x)}, got {shown(partners)}")
    classes_of("mixup", x.shape[0], partners=partners)
    if isinstance(ratio, Tensor) and ratio.ndim:
        if ratio.shape != x.shape[:1]:
            raise TransferError(f"mixup: wanted one ratio, or one for each row of {shown(x)}, got {shown(ratio)}")
        ratio = ratio.reshape(-1, *[1] * (x.ndim - 1))
    return (ratio * x + (1 - ratio) * x[partners.long()]).to(x.dtype)
