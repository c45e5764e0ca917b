"""Group DRO, with the weights of its domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer.core import Term, term

__all__ = ["groupdro"]


def groupdro(logits: Sequence[Any], labels: Sequence[Any], *, eta: Any = 0.01, weight: Any = 1.0) -> Term:
    """Minimise the risk of the worst domain: `tt.align.group_weights` of the domains' cross-entropies.

    It stands in the place of the task's own term. The weights are a state: they begin equal, follow this step's risks,
    and then weigh them.

    Args:
        logits: the reads of each domain's logits, ``["net(a)", "net(b)"]``.
        labels: the reads of each domain's labels, ``["a.y", "b.y"]``.
        eta: the speed of the weights.
        weight: of the term.

    Returns:
        A Term.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.groupdro(["net(a)", "net(b)"], ["a.y", "b.y"])
        >>> sorted(term.hyper)
        ['eta', 'weight']

    References:
        Shiori Sagawa, Pang Wei Koh, Tatsunori B. Hashimoto, Percy Liang. Distributionally Robust Neural Networks for
        Group Shifts: On the Importance of Regularization for Worst-Case Generalization. 2020.
    """

    @claims(coupled=True, about=groupdro)
    def loss(
        logits: list[Tensor], labels: list[Tensor], *, state: Any, eta: float | Tensor = 0.01
    ) -> tuple[Tensor, Any]:
        risks = align.domain_risks(logits, labels, called="groupdro")
        weights = align.group_weights(state["weights"], risks, eta=eta)
        return (weights * risks).sum(), {"weights": weights}

    def init(generator: torch.Generator, logits: list[Tensor], labels: list[Tensor]) -> Any:
        dtype = torch.promote_types(logits[0].dtype, torch.float32)
        return {"weights": torch.full((len(logits),), 1 / len(logits), dtype=dtype, device=generator.device)}

    return term(loss, list(logits), list(labels), weight=weight, state=init, eta=eta)
