"""Minimum class confusion."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer._numeric import entropies, wide
from ttransfer.align._check import in_range, items, want_logits

__all__ = ["mcc"]


@claims(
    coupled=True,
    non_negative=True,
    row_symmetric=True,
    repeat_invariant=True,
    class_symmetric=True,
    shift_invariant=True,
)
def mcc(logits: Tensor, *, temperature: float | Tensor = 2.5) -> Tensor:
    r"""How much the classes of a batch are confused with each other, by its predictions alone.

    .. math::
        \frac1C \sum_c \sum_{c' \neq c} \tilde C_{cc'}, \qquad
        \tilde C_{cc'} = \frac{\sum_i w_i \, p_{ic} \, p_{ic'}}{\sum_i w_i \, p_{ic}}, \quad
        w_i \propto 1 + e^{-H(p_i)}, \quad p_i = \mathrm{softmax}(z_i / T)

    H is the entropy. The weights w get no gradient, as in the authors' code; the paper does not say. A class that
    nobody is likely to be counts as well, by the rows that are likeliest to be of it: no probability underflows.

    Args:
        logits: of the target, (n, classes).
        temperature: T.

    Returns:
        A scalar from 0 to 1 - 1/classes.

    Raises:
        TransferError: for what are no logits (n, classes) of at least two classes.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.mcc(torch.zeros(3, 4)).item(), tt.align.mcc(1000 * torch.eye(4)).item()
        (0.75, 0.0)

    Checked against:
        pytorch-adapt's MCCLoss, skada's mcc_loss in value, and a loop from the paper.

    Peers:
        All divide by a class's sum of probabilities, which is 0 where it underflows: NaN in float32 where logits are
        260 apart at T = 2.5. skada lets the weights have a gradient, and adds 1e-7 inside their logarithms.
        pytorch-adapt and skada have T = 1.

    References:
        Ying Jin, Ximei Wang, Mingsheng Long, Jianmin Wang.
        Minimum Class Confusion for Versatile Domain Adaptation. 2020.
    """
    want_logits("mcc", logits=logits)
    if logits.ndim != 2:
        raise TransferError(f"mcc: wanted logits (n, classes), got {items(logits=logits)}")
    in_range("mcc", temperature=temperature)
    (z,) = wide(logits)
    log_p = (z / temperature).log_softmax(1)
    log_weights = (-entropies(log_p.detach())).exp().log1p()
    # Each class's shares of the rows, whose sum is 1: its confusion with others is what these rows leave to others.
    shares = (log_weights[:, None] + log_p).softmax(0)
    return (shares * -torch.expm1(log_p)).sum(0).mean().to(logits.dtype)
