"""How far two classifiers disagree."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer._numeric import wide
from ttransfer.align._check import items, want_logits

__all__ = ["mcd"]


@claims(
    coupled=False,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    row_symmetric=True,
    repeat_invariant=True,
)
def mcd(logits: Tensor, other_logits: Tensor) -> Tensor:
    r"""Maximum classifier discrepancy: how far the predictions of two classifiers are apart.

    .. math:: \frac{1}{n C} \sum_i \sum_c | p_{ic} - q_{ic} |, \qquad
        p = \mathrm{softmax}(z), \quad q = \mathrm{softmax}(z')

    On target rows the classifiers maximise it and the features minimise it, in turn: see `tt.terms.mcd`.

    Args:
        logits: of one classifier, (n, classes) or maps (n, classes, ...).
        other_logits: of the other, of the same shape.

    Returns:
        A scalar without unit, from 0 to 2 / classes.

    Raises:
        TransferError: for other shapes.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.mcd(torch.tensor([[100.0, 0.0]]), torch.zeros(1, 2)).item()
        0.5

    Checked against:
        pytorch-adapt's MCDLoss, and a loop.

    Peers:
        pytorch-adapt, ADAPT and TLlib have it. pytorch-adapt's GeneralMCDLoss, for more than two classifiers, raises.

    References:
        Kuniaki Saito, Kohei Watanabe, Yoshitaka Ushiku, Tatsuya Harada.
        Maximum Classifier Discrepancy for Unsupervised Domain Adaptation. 2018.
    """
    want_logits("mcd", logits=logits, other_logits=other_logits)
    if logits.shape != other_logits.shape:
        raise TransferError(f"mcd: wanted logits of one shape, got {items(logits=logits, other_logits=other_logits)}")
    z, y = wide(logits, other_logits)
    return (z.softmax(1) - y.softmax(1)).abs().mean().to(torch.promote_types(logits.dtype, other_logits.dtype))
