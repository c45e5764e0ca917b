"""Margin disparity discrepancy with its auxiliary classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer.core import Adapter, Params, Term, term
from ttransfer.terms._parts import want_adapters

__all__ = ["mdd"]


def mdd(
    source: Any,
    target: Any,
    source_logits: Any,
    target_logits: Any,
    *,
    adversary: Adapter,
    gamma: Any = 4.0,
    scale: Any = 0.1,
    weight: Any = 1.0,
) -> Term:
    """Learn features on which no second classifier agrees with the first on the source and not on the target.

    The auxiliary classifier minimises `tt.align.mdd`; the features get the opposite of its gradient, times `scale`,
    in the same update. The classifier itself gets none.

    Args:
        source: the read of source features, (n, d).
        target: the read of target features, (m, d).
        source_logits: the read of the classifier's logits of source rows, (n, classes).
        target_logits: the read of its logits of target rows, (m, classes).
        adversary: features -> logits (n, classes), such as `tt.adapters.mlp(1024, out=31)`; its parameters belong to
            the term.
        gamma: weight of the source in the adversary's loss; the paper has 2, 3 and 4.
        scale: strength of the reversed gradient; the authors raise it from 0 to 0.1.
        weight: of the term; it scales the adversary's gradient and the features' alike.

    Returns:
        A Term.

    Raises:
        TransferError: for an adversary that is no Adapter.

    Example:
        >>> import ttransfer as tt
        >>> reads = "net(source).fc:in", "net(target).fc:in", "net(source)", "net(target)"
        >>> term = tt.terms.mdd(*reads, adversary=tt.adapters.mlp(64, out=31))
        >>> sorted(term.hyper)
        ['gamma', 'scale', 'weight']

    Checked against:
        A loop from the paper.

    Peers:
        TLlib, ADAPT and skada have it; see `tt.align.mdd`.

    References:
        Yuchen Zhang, Tianle Liu, Mingsheng Long, Michael I. Jordan.
        Bridging Theory and Algorithm for Domain Adaptation. 2019.
    """
    want_adapters("mdd", adversary=adversary)

    @claims(coupled=True, about=mdd)
    def loss(
        source: Tensor,
        target: Tensor,
        source_logits: Tensor,
        target_logits: Tensor,
        *,
        params: Mapping[str, Tensor],
        gamma: float | Tensor,
        scale: float | Tensor,
    ) -> Tensor:
        against, other = (adversary.apply(dict(params), align.gradient_reversal(x, scale)) for x in (source, target))
        return align.mdd(source_logits, target_logits, against, other, gamma=gamma)

    def init(generator: torch.Generator, source: Tensor, *_: Tensor) -> Params:
        return adversary.init(generator, source)

    reads = (source, target, source_logits, target_logits)
    return term(loss, *reads, weight=weight, params=init, gamma=gamma, scale=scale)
