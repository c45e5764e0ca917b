"""Fishr, with the running means of its domains' variances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer.core import Term, term

__all__ = ["fishr"]


def fishr(
    features: Sequence[Any],
    logits: Sequence[Any],
    labels: Sequence[Any],
    *,
    decay: Any = 0.95,
    variant: str = "code",
    weight: Any = 1000.0,
) -> Term:
    """Make gradients vary alike in every domain: `tt.align.fishr` on variances that are averaged over steps.

    What is compared is v + γ v₋₁ + γ² v₋₂ + ..., the authors' running mean by (1 - γ): only this step's v gets a
    gradient, and its share does not depend on γ.

    Args:
        features: the reads of what each domain's rows give the linear head, ``["net(a).fc:in", "net(b).fc:in"]``.
        logits: the reads of each domain's logits.
        labels: the reads of each domain's labels.
        decay: γ.
        variant: as of `tt.align.fishr`; the default weight is that of the authors' code.
        weight: of the term. The authors have it small for the first 1500 steps: a schedule.

    Returns:
        A Term.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.fishr(["net(a).fc:in", "net(b).fc:in"], ["net(a)", "net(b)"], ["a.y", "b.y"])
        >>> sorted(term.hyper)
        ['decay', 'weight']

    References:
        Alexandre Ramé, Corentin Dancette, Matthieu Cord.
        Fishr: Invariant Gradient Variances for Out-of-Distribution Generalization. 2022.
    """

    @claims(coupled=True, about=fishr)
    def loss(
        features: list[Tensor], logits: list[Tensor], labels: list[Tensor], *, state: Any, decay: float | Tensor = 0.95
    ) -> tuple[Tensor, Any]:
        variances = align.head_variances(features, logits, labels, variant=variant)
        summed = (decay * state["variances"] + variances).to(variances.dtype)
        return align.variance_gap(summed, variant=variant).to(logits[0].dtype), {"variances": summed.detach()}

    def init(generator: torch.Generator, features: list[Tensor], logits: list[Tensor], labels: list[Tensor]) -> Any:
        like = align.head_variances(features, logits, labels, variant=variant)
        return {"variances": torch.zeros(like.shape, dtype=like.dtype, device=generator.device)}

    return term(loss, list(features), list(logits), list(labels), weight=weight, state=init, decay=decay)
