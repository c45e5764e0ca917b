"""Conditional domain-adversarial training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer.align import (
    domain_adversarial,
    entropy_weights,
    gradient_reversal,
    multilinear,
    multilinear_random,
    weighted_domain_adversarial,
)
from ttransfer.core import Adapter, Params, Term, term
from ttransfer.terms._parts import want_adapters

__all__ = ["cdan", "cdan_e"]

Variant = Literal["paper", "code"]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def cdan(
    source: Any,
    target: Any,
    source_logits: Any,
    target_logits: Any,
    *,
    critic: Adapter,
    random: int | None = None,
    scale: Any = 1.0,
    weight: Any = 1.0,
    variant: Variant = "code",
) -> Term:
    """Learn features that a critic cannot tell the domain from, though it is told the predictions.

    The critic looks at the outer product of features and predictions:

        1/2 [ BCE(critic(R(source) x g), 1) + BCE(critic(R(target) x g), 0) ], g = softmax(logits)

    where R is the identity whose gradient is multiplied by ``-scale``. The paper's objective lets that gradient
    into the predictions too; its authors' code, and so the default here, detaches them. The paper's equation 1
    has no 1/2: the half comes from the authors' code, where both domains share one mean.

    Args:
        source: the read of source features, (n, d).
        target: the read of target features, (m, d).
        source_logits: the read of source predictions, (n, classes), before softmax.
        target_logits: the read of target predictions, (m, classes).
        critic: (n, d · classes), or (n, random), -> logit (n, 1); its parameters belong to the term.
        random: None takes all products. A number takes so many random ones, for which fixed normal matrices are
            drawn into the term's state: the paper's choice above 4096 products, 1024 in its code.
        scale: strength of the reversed gradient; the paper ramps it, see `tt.schedules.ramp`.
        weight: of the term; it scales the critic's gradient and the features' alike.
        variant: "paper" reverses the gradient of the predictions too, "code" gives them none.

    Returns:
        A Term.

    Raises:
        TransferError: for a number of random products below 1, or another variant.

    Example:
        >>> import ttransfer as tt
        >>> reads = "net(source).fc:in", "net(target).fc:in", "net(source)", "net(target)"
        >>> term = tt.terms.cdan(*reads, critic=tt.adapters.mlp(64), scale=tt.schedules.ramp(1000))
        >>> sorted(term.hyper)
        ['scale', 'weight']

    Checked against:
        A loop with torch's binary cross-entropy; pytorch-adapt's RandomizedDotProduct.

    Peers:
        pytorch-adapt, skada, ADAPT, TLlib and e2eAIOK have it. TLlib detaches the predictions, pytorch-adapt and skada
        do not. skada multiplies by logits instead of probabilities.

    References:
        Mingsheng Long, Zhangjie Cao, Jianmin Wang, Michael I. Jordan.
        Conditional Adversarial Domain Adaptation. 2018.
    """

    def value(source: Tensor, target: Tensor, source_logits: Tensor, target_logits: Tensor) -> Tensor:
        return domain_adversarial(source, target)

    reads = (source, target, source_logits, target_logits)
    return _conditional(cdan, value, reads, critic, random, scale, weight, variant)


def cdan_e(
    source: Any,
    target: Any,
    source_logits: Any,
    target_logits: Any,
    *,
    critic: Adapter,
    random: int | None = None,
    scale: Any = 1.0,
    weight: Any = 1.0,
    variant: Variant = "code",
) -> Term:
    """CDAN with sure rows first: `cdan`, each row weighted by 1 + exp(-H) of its predictions' entropy H.

    The weights are a part of the game: their gradient is reversed as the features' is. The paper leaves them as
    they are; its code, and so the default here, divides them by their mean in each domain, which counts as a constant.

    Args:
        source: the read of source features, (n, d).
        target: the read of target features, (m, d).
        source_logits: the read of source predictions, (n, classes), before softmax.
        target_logits: the read of target predictions, (m, classes).
        critic: as for `cdan`.
        random: as for `cdan`.
        scale: as for `cdan`.
        weight: of the term.
        variant: "paper" takes the weights as they are and reverses the gradient of the critic's input through the
            predictions too; "code" divides them by their mean and gives the predictions in the critic's input none.

    Returns:
        A Term.

    Raises:
        TransferError: for a number of random products below 1, or another variant.

    Example:
        >>> import ttransfer as tt
        >>> reads = "net(source).fc:in", "net(target).fc:in", "net(source)", "net(target)"
        >>> sorted(tt.terms.cdan_e(*reads, critic=tt.adapters.mlp(64)).hyper)
        ['scale', 'weight']

    Checked against:
        A loop with torch's binary cross-entropy.

    Peers:
        The authors' code adds 1e-5 inside the logarithm of the entropy. TLlib gives the weights no gradient and divides
        them by their mean over both domains; pytorch-adapt divides them by their largest.

    References:
        Mingsheng Long, Zhangjie Cao, Jianmin Wang, Michael I. Jordan.
        Conditional Adversarial Domain Adaptation. 2018.
    """

    def value(source: Tensor, target: Tensor, source_logits: Tensor, target_logits: Tensor) -> Tensor:
        w, v = entropy_weights(source_logits), entropy_weights(target_logits)
        if variant == "code":
            w, v = w / w.detach().mean(), v / v.detach().mean()
        return weighted_domain_adversarial(source, target, w, v)

    reads = (source, target, source_logits, target_logits)
    return _conditional(cdan_e, value, reads, critic, random, scale, weight, variant)


def _conditional(
    about: Callable[..., Term],
    value: Loss,
    reads: tuple[Any, ...],
    critic: Adapter,
    random: int | None,
    scale: Any,
    weight: Any,
    variant: Variant,
) -> Term:
    """A term whose critic sees features and predictions; `value` takes the critic's logits and the predictions'."""
    name = about.__name__
    want_adapters(name, critic=critic)
    if random is not None and random < 1:
        raise TransferError(f"{name}: wanted at least 1 random product, or None for all, got {random}")
    if variant not in ("paper", "code"):
        raise TransferError(f"{name}: wanted variant 'paper' or 'code', got {variant!r}")

    def product(features: Tensor, logits: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        predictions = logits.softmax(1)
        predictions = predictions.detach() if variant == "code" else predictions
        if random is None:
            return multilinear(features, predictions)
        return multilinear_random(features, predictions, state["left"], state["right"])

    def both(
        source: Tensor,
        target: Tensor,
        source_logits: Tensor,
        target_logits: Tensor,
        params: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        scale: float | Tensor,
    ) -> Tensor:
        f, g, z, y = (gradient_reversal(x, scale) for x in (source, target, source_logits, target_logits))
        own = dict(params)
        return value(critic.apply(own, product(f, z, state)), critic.apply(own, product(g, y, state)), z, y)

    @claims(coupled=True, about=about)
    def loss(
        source: Tensor,
        target: Tensor,
        source_logits: Tensor,
        target_logits: Tensor,
        *,
        params: Mapping[str, Tensor],
        scale: float | Tensor,
    ) -> Tensor:
        return both(source, target, source_logits, target_logits, params, {}, scale)

    @claims(coupled=True, about=about)
    def with_state(
        source: Tensor,
        target: Tensor,
        source_logits: Tensor,
        target_logits: Tensor,
        *,
        params: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        scale: float | Tensor,
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return both(source, target, source_logits, target_logits, params, state, scale), state

    def init(generator: torch.Generator, source: Tensor, target: Tensor, source_logits: Tensor, _: Tensor) -> Params:
        width = random or source.shape[1] * source_logits.shape[1]
        return critic.init(generator, source.new_empty((source.shape[0], width)))

    def draw(generator: torch.Generator, source: Tensor, target: Tensor, source_logits: Tensor, _: Tensor) -> Params:
        dtype = torch.float64 if source.dtype == torch.float64 else torch.float32
        options: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": generator.device}
        widths = {"left": source.shape[1], "right": source_logits.shape[1]}
        return {name: torch.randn(d, random or 0, **options) for name, d in widths.items()}

    if random is None:
        return term(loss, *reads, weight=weight, params=init, scale=scale)
    return term(with_state, *reads, weight=weight, params=init, state=draw, scale=scale)
