"""Domain-adversarial training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer.align import domain_adversarial, gradient_reversal
from ttransfer.core import Adapter, Params, Term, term
from ttransfer.terms._parts import want_adapters

__all__ = ["dann"]


def dann(
    source: Any,
    target: Any,
    *,
    critic: Adapter,
    scale: Any = 1.0,
    weight: Any = 1.0,
) -> Term:
    """Learn features that a critic cannot tell the domain from.

    The critic minimises the binary cross-entropy of telling source from target; the features get the
    opposite of its gradient, times `scale`. Both happen in one gradient:

        1/2 [ BCE(critic(R(source)), 1) + BCE(critic(R(target)), 0) ]

    where R is the identity whose gradient is multiplied by ``-scale``. The paper's equation 9 has no 1/2: the half
    comes from the authors' code, where both domains share one mean. ``weight=2.0`` makes it the equation's.

    Args:
        source: the read of source features, (n, d).
        target: the read of target features, (m, d).
        critic: feature -> logit (n, 1), for example `tt.adapters.mlp(256)`; its parameters belong to the term.
        scale: strength of the reversed gradient; the paper ramps it, see `tt.schedules.ramp`.
        weight: of the term; it scales the critic's gradient and the features' alike.

    Returns:
        A Term.

    Raises:
        TransferError: for a critic that is no Adapter; `tt.adapters.module` makes one of a module.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.dann("student(source).fc:in", "student(target).fc:in", critic=tt.adapters.mlp(64),
        ...                      scale=tt.schedules.ramp(1000), weight=0.1)
        >>> sorted(term.hyper)
        ['scale', 'weight']

    References:
        Yaroslav Ganin, Victor Lempitsky. Unsupervised Domain Adaptation by Backpropagation. 2015.
        Yaroslav Ganin, Evgeniya Ustinova, Hana Ajakan, Pascal Germain, Hugo Larochelle, François Laviolette,
        Mario Marchand, Victor Lempitsky. Domain-Adversarial Training of Neural Networks. 2016.
    """
    want_adapters("dann", critic=critic)

    @claims(coupled=True, about=dann)
    def loss(source: Tensor, target: Tensor, *, params: Mapping[str, Tensor], scale: float | Tensor = 1.0) -> Tensor:
        own = dict(params)
        return domain_adversarial(
            critic.apply(own, gradient_reversal(source, scale)), critic.apply(own, gradient_reversal(target, scale))
        )

    def init(generator: torch.Generator, source: Tensor, target: Tensor) -> Params:
        return critic.init(generator, source)

    return term(loss, source, target, weight=weight, params=init, scale=scale)
