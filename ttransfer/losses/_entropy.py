"""Entropy of predictions."""

from __future__ import annotations

from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import entropies, wide
from ttransfer.losses._check import want_logits


@claims(
    coupled=False,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    row_symmetric=True,
    double_backward=True,
)
def entropy(logits: Tensor) -> Tensor:
    r"""Mean Shannon entropy of the predictions.

    .. math:: -\frac1n \sum_i \sum_c p_{ic} \log p_{ic}, \qquad p_i = \mathrm{softmax}(z_i)

    Minimised on unlabelled rows it makes predictions confident, and so moves boundaries away from the data.

    Args:
        logits: (n, classes) or (n, classes, ...); for maps the mean is over examples and positions.

    Returns:
        A scalar in nats, between 0 and log(classes).

    Raises:
        TransferError: if the shape is not that of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.losses.entropy(torch.zeros(3, 4)).item(), 4)  # log 4
        1.3863

    Checked against:
        A loop, pytorch-adapt's EntropyLoss and SciPy's entropy.

    Peers:
        pytorch-adapt has it. Authors' codes add 1e-5 to probabilities inside the logarithm, which sends no gradient
        to classes below that.

    References:
        Yves Grandvalet, Yoshua Bengio. Semi-supervised Learning by Entropy Minimization. 2004.
    """
    want_logits("entropy", logits=logits)
    (z,) = wide(logits)
    return entropies(z).mean().to(logits.dtype)
