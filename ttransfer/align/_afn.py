"""Adaptive feature norm: features of both domains as long as each other, and long."""

from __future__ import annotations

from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import root
from ttransfer.align._check import rows_of

__all__ = ["afn", "afn_hard"]


@claims(coupled=False, non_negative=True, row_symmetric=True, rotation_invariant=True, repeat_invariant=True)
def afn(features: Tensor, *, step: float | Tensor = 1.0) -> Tensor:
    r"""Stepwise adaptive feature norm: each row is to be longer by a step than it is.

    .. math:: \frac1n \sum_i \bigl( \|f_i\| - (\lceil f_i \rceil + \Delta) \bigr)^2, \qquad
        \lceil f_i \rceil = \|f_i\| \text{ held constant}

    The value is Δ², whatever the features are; the gradient, -2Δ f / (n ‖f‖), is what counts. The paper takes it over
    the rows of both domains together, with the weight 0.05. The authors' code, and all that followed it, adds that of
    the source and that of the target, two terms here: twice as much. A row of zeros gets no gradient.

    Args:
        features: of one domain, (n, d).
        step: Δ, in the features' units.

    Returns:
        A scalar, the square of the step.

    Raises:
        TransferError: for maps, for no rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> tt.align.afn(x).item(), torch.func.grad(tt.align.afn)(x)  # -2 (3, 4) / 5
        (1.0, tensor([[-1.2000, -1.6000]]))

    Checked against:
        pytorch-adapt's AdaptiveFeatureNorm, and the gradient in closed form.

    Peers:
        pytorch-adapt and TLlib have it; for a row of zeros pytorch-adapt's gradient is 0 as well.

    References:
        Ruijia Xu, Guanbin Li, Jihan Yang, Liang Lin. Larger Norm More Transferable:
        An Adaptive Feature Norm Approach for Unsupervised Domain Adaptation. 2019.
    """
    lengths = root(rows_of("afn", features).square().sum(1))
    return (lengths - lengths.detach() - step).square().mean().to(features.dtype)


@claims(coupled=True, non_negative=True, row_symmetric=True, rotation_invariant=True, repeat_invariant=True)
def afn_hard(features: Tensor, *, radius: float | Tensor = 25.0) -> Tensor:
    r"""Hard adaptive feature norm: the mean length of the rows is to be a radius.

    .. math:: \Bigl( \frac1n \sum_i \|f_i\| - R \Bigr)^2

    The paper adds that of the source and that of the target, two terms here, with the weight 0.05.

    Args:
        features: of one domain, (n, d).
        radius: R, in the features' units.

    Returns:
        A scalar, at least 0, in the square of the features' units.

    Raises:
        TransferError: for maps, for no rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.afn_hard(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), radius=1.0).item()  # (5 / 2 - 1)²
        2.25

    Checked against:
        A loop from the paper.

    Peers:
        The authors' code alone.

    References:
        Ruijia Xu, Guanbin Li, Jihan Yang, Liang Lin. Larger Norm More Transferable:
        An Adaptive Feature Norm Approach for Unsupervised Domain Adaptation. 2019.
    """
    lengths = root(rows_of("afn_hard", features).square().sum(1))
    return (lengths.mean() - radius).square().to(features.dtype)
