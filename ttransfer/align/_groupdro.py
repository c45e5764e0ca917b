"""The worst domain first: weights of domains that grow with their risks."""

from __future__ import annotations

from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.align._check import in_range, want_tensors


def group_weights(weights: Tensor, risks: Tensor, *, eta: float | Tensor = 0.01) -> Tensor:
    r"""Raise the weights of the domains whose risks are high: a step of exponentiated gradient ascent.

    .. math:: q_e' \propto q_e \, e^{\eta R_e}, \qquad \sum_e q_e' = 1

    The loss then is :math:`\sum_e q_e' R_e`, by which the net descends. `tt.terms.groupdro` keeps the weights.

    Args:
        weights: q (domains,), at least 0; start from equal ones.
        risks: R (domains,), such as `domain_risks`; get no gradient.
        eta: η ≥ 0, the speed; as it grows only the worst domain counts.

    Returns:
        Weights (domains,) that sum to 1, without gradient.

    Raises:
        TransferError: if the shapes differ or are not (domains,).

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.group_weights(torch.ones(2) / 2, torch.tensor([1.0, 0.0]), eta=1.0)
        tensor([0.7311, 0.2689])

    Checked against:
        DomainBed's rule in a loop.

    Peers:
        DomainBed has it. TLlib weights its sampler by it.

    References:
        Shiori Sagawa, Pang Wei Koh, Tatsunori B. Hashimoto, Percy Liang. Distributionally Robust Neural Networks for
        Group Shifts: On the Importance of Regularization for Worst-Case Generalization. 2020.
    """
    want_tensors("group_weights", weights=weights, risks=risks)
    in_range("group_weights", closed=True, eta=eta)
    if weights.ndim != 1 or weights.shape != risks.shape:
        raise TransferError(
            f"group_weights: wanted weights and risks (domains,), got weights {shown(weights)} and risks {shown(risks)}"
        )
    q, r = wide(weights.detach(), risks.detach())
    # In logarithms: exp(η R) overflows where R does not. A domain of weight 0 keeps it.
    return (q.log() + eta * r).softmax(0).to(weights.dtype)
