"""Transport of joint distributions: of features together with labels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer.align._check import (
    classes_of,
    features,
    in_range,
    items,
    row_labels,
    same_rows,
    want_logits,
    want_tensors,
    whole,
)
from ttransfer.align._distances import squared_distances
from ttransfer.align._transport import plan as entropic_plan

__all__ = ["deepjdot"]


@claims(coupled=True, non_negative=True, class_symmetric=True)
def deepjdot(
    source: Tensor,
    target: Tensor,
    source_labels: Tensor,
    target_logits: Tensor,
    *,
    feature_weight: float | Tensor = 0.001,
    label_weight: float | Tensor = 0.0001,
    epsilon: float | Tensor | None = None,
    iterations: int = 100,
    plan: Tensor | None = None,
    variant: Literal["paper", "code"] = "paper",
) -> Tensor:
    r"""Cost of transporting the source to the target in features and labels at once, at a plan held constant.

    .. math::
        \sum_{i,j} \gamma_{ij} \, C_{ij}, \qquad
        C_{ij} = \alpha \|s_i - t_j\|^2 + \lambda \, \bigl( -\log p_j(y_i) \bigr), \quad p_j = \mathrm{softmax}(z_j)

    The paper's plan γ is the exact one of least cost on the batch; give it as `plan` for just that. Without one, the
    plan is entropic: of least cost plus ε times its negative entropy. Either way it gives every row the same mass and
    gets no gradient. The authors' code for SVHN finds the plan for other costs than those that it then weighs by it:
    with the squared distance of p to the label, as a vector of 0 and 1, in place of -log p (their class of later takes
    that without λ).

    Args:
        source: features (n, d).
        target: features (m, d); m need not be n.
        source_labels: (n,) from 0 to classes - 1; none is ignored.
        target_logits: (m, classes).
        feature_weight: α, by the square of the features' units.
        label_weight: λ, by nats.
        epsilon: the temperature of the plan in the units of the cost that it is found for. None takes a twentieth of
            that cost's mean.
        iterations: of Sinkhorn.
        plan: (n, m), at least 0, with the sum 1, in place of the entropic one.
        variant: which cost the plan is found for.

    Returns:
        A scalar, at least 0.

    Raises:
        TransferError: for maps, for widths that differ, for no rows, for labels, logits or a plan of other rows, for
            another variant, for labels that are no class, where they can be looked at.

    Example:
        >>> import torch, ttransfer as tt
        >>> source, target, labels = torch.tensor([[0.0], [9.0]]), torch.tensor([[9.0], [1.0]]), torch.tensor([0, 1])
        >>> logits = torch.tensor([[0.0, 99.0], [99.0, 0.0]])
        >>> value = tt.align.deepjdot(source, target, labels, logits, feature_weight=1.0, label_weight=1.0)
        >>> round(value.item(), 4)  # (1² + 0²) / 2
        0.5

    Checked against:
        skada's deepjdot_loss and POT's exact plan, and Sinkhorn's own iteration on costs in a loop.

    Peers:
        skada has it with the exact plan, which is found on the CPU. It makes the matrix of labels by repeating both
        sides to n rows, so that n = m must hold. Its weights are 1 and 1.

    References:
        Bharath Bhushan Damodaran, Benjamin Kellenberger, Rémi Flamary, Devis Tuia, Nicolas Courty.
        DeepJDOT: Deep Joint Distribution Optimal Transport for Unsupervised Domain Adaptation. 2018.
    """
    s, t = features("deepjdot", source, target, rows=1)
    row_labels("deepjdot", source, source_labels)
    want_logits("deepjdot", target_logits=target_logits)
    same_rows("deepjdot", target=target, target_logits=target_logits)
    if target_logits.ndim != 2:
        raise TransferError(f"deepjdot: wanted logits (m, classes), got {items(target_logits=target_logits)}")
    if variant not in ("paper", "code"):
        raise TransferError(f"deepjdot: wanted variant 'paper' or 'code', got {variant!r}")
    classes_of("deepjdot", target_logits.shape[1], source_labels=source_labels)
    in_range("deepjdot", epsilon=epsilon)
    whole("deepjdot", 1, iterations=iterations)
    log_p = target_logits.to(s.dtype).log_softmax(1)
    lengths = feature_weight * squared_distances(s, t)
    cost = lengths - label_weight * log_p.mT[source_labels.long()]
    if plan is not None:
        want_tensors("deepjdot", plan=plan)
    if plan is None:
        sought = cost if variant == "paper" else lengths + label_weight * _by_squares(log_p, source_labels)
        mean = sought.detach().mean()
        heat = torch.where(mean > 0, mean, 1) / 20 if epsilon is None else epsilon
        plan = entropic_plan(sought, heat, iterations)
    elif plan.shape != cost.shape:
        raise TransferError("deepjdot: wanted a plan (n, m), got " + items(source=source, target=target, plan=plan))
    return (plan.detach() * cost).sum().to(torch.promote_types(source.dtype, target.dtype))


def _by_squares(log_p: Tensor, labels: Tensor) -> Tensor:
    """Squared distances of labels, as vectors of 0 and 1, to probabilities: 1 - 2 p(y) + Σ p²."""
    p = log_p.exp()
    return 1 - 2 * p.mT[labels.long()] + p.square().sum(1)
