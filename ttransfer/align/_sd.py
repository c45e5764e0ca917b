"""Spectral decoupling: logits are kept small, so that one easy feature does not starve the others."""

from __future__ import annotations

from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.align._check import want_tensors


@claims(coupled=False, non_negative=True, class_symmetric=True, rotation_invariant=True, double_backward=True)
def sd(logits: Tensor) -> Tensor:
    r"""Mean square of the logits.

    .. math:: \frac{1}{nc} \sum_{i, j} z_{ij}^2

    In the place of weight decay. The paper's penalty is λ/2 times the square of a binary net's one logit, so that its
    λ is twice the weight; DomainBed has 0.1.

    Args:
        logits: (n, classes) or (n, classes, ...), or (n,) of a binary net; the mean is over all of them.

    Returns:
        A scalar in the square of the logits' units, at least 0.

    Raises:
        TransferError: for what are no floating numbers of rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.sd(torch.tensor([[1.0, -3.0]])).item()  # (1 + 9) / 2
        5.0

    Checked against:
        A loop.

    Peers:
        DomainBed has it.

    References:
        Mohammad Pezeshki, Sékou-Oumar Kaba, Yoshua Bengio, Aaron Courville, Doina Precup, Guillaume Lajoie.
        Gradient Starvation: A Learning Proclivity in Neural Networks. 2021.
    """
    want_tensors("sd", logits=logits)
    if logits.ndim == 0 or not logits.is_floating_point():
        raise TransferError(f"sd: wanted floating logits (n, classes, ...), got {shown(logits)}")
    (z,) = wide(logits)
    return z.square().mean().to(logits.dtype)
