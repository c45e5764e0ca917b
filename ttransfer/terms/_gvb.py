"""Domain-adversarial training with bridges that vanish."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer._numeric import entropies, wide
from ttransfer.core import Adapter, Params, Term, term
from ttransfer.terms._parts import part, under, want_adapters

__all__ = ["gvb", "gvb_e"]

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def gvb(
    source_logits: Any,
    target_logits: Any,
    source_bridge: Any,
    target_bridge: Any,
    *,
    critic: Adapter,
    critic_bridge: Adapter,
    of_net: Any = 1.0,
    of_critic: Any = 1.0,
    scale: Any = 1.0,
    weight: Any = 1.0,
) -> Term:
    """Predictions whose domain a critic cannot tell; bridges in net and critic take up what differs, and vanish.

    The net's logits are those of its head less those of its bridge; the critic looks at their softmax p and has a
    bridge of its own, d(p) = critic(p) - critic_bridge(p):

        domain_adversarial(d(R(p_source)), d(R(p_target))) + of_critic · |critic_bridge| + of_net · |net's bridge|

    where R is the identity whose gradient is multiplied by ``-scale``, and sizes are `tt.align.bridge`'s. The size of
    the critic's bridge is a part of the critic's loss, so its gradient is reversed for the net too, as in the authors'
    code. The size of the net's bridge is the net's own affair.

    Args:
        source_logits: the read of the logits of source rows, its bridge taken off, (n, classes).
        target_logits: likewise for m rows.
        source_bridge: the read of what the net's bridge took off in source rows, (n, classes).
        target_bridge: likewise for m rows.
        critic: probabilities (n, classes) -> logit (n, 1); its parameters belong to the term.
        critic_bridge: of the same form as the critic.
        of_net: weight of the size of the net's bridge.
        of_critic: weight of the size of the critic's bridge.
        scale: strength of the reversed gradient.
        weight: of the term.

    Returns:
        A Term.

    Raises:
        TransferError: for critics that are no Adapters.

    Example:
        >>> import ttransfer as tt
        >>> reads = "net(source)[0]", "net(target)[0]", "net(source)[1]", "net(target)[1]"
        >>> term = tt.terms.gvb(*reads, critic=tt.adapters.mlp(64), critic_bridge=tt.adapters.mlp(64))
        >>> sorted(term.hyper)
        ['of_critic', 'of_net', 'scale', 'weight']

    Checked against:
        A loop; pytorch-adapt's ModelWithBridge and AbsLoss.

    Peers:
        pytorch-adapt has it.

    References:
        Shuhao Cui, Shuhui Wang, Junbao Zhuo, Chi Su, Qingming Huang, Qi Tian.
        Gradually Vanishing Bridge for Adversarial Domain Adaptation. 2020.
    """

    def value(source: Tensor, target: Tensor, source_logits: Tensor, target_logits: Tensor) -> Tensor:
        return align.domain_adversarial(source, target)

    reads = (source_logits, target_logits, source_bridge, target_bridge)
    return _bridged(gvb, value, reads, critic, critic_bridge, of_net, of_critic, scale, weight)


def gvb_e(
    source_logits: Any,
    target_logits: Any,
    source_bridge: Any,
    target_bridge: Any,
    *,
    critic: Adapter,
    critic_bridge: Adapter,
    of_net: Any = 1.0,
    of_critic: Any = 1.0,
    scale: Any = 1.0,
    weight: Any = 1.0,
) -> Term:
    """GVB with sure rows first: `gvb`, each row's cross-entropy weighted by exp(-H) of its predictions' entropy H.

    The weights are divided by their mean in each domain, which counts as a constant, and are a part of the game:
    their gradient is reversed as the predictions' is. `cdan_e` has 1 + exp(-H), so that a row that could be any of many
    classes still weighs half of a sure one; here it weighs next to nothing. The bridges' sizes are not weighted.

    Args:
        source_logits: as for `gvb`.
        target_logits: as for `gvb`.
        source_bridge: as for `gvb`.
        target_bridge: as for `gvb`.
        critic: as for `gvb`.
        critic_bridge: as for `gvb`.
        of_net: weight of the size of the net's bridge.
        of_critic: weight of the size of the critic's bridge.
        scale: strength of the reversed gradient.
        weight: of the term.

    Returns:
        A Term.

    Raises:
        TransferError: for critics that are no Adapters.

    Example:
        >>> import ttransfer as tt
        >>> reads = "net(source)[0]", "net(target)[0]", "net(source)[1]", "net(target)[1]"
        >>> term = tt.terms.gvb_e(*reads, critic=tt.adapters.mlp(64), critic_bridge=tt.adapters.mlp(64))
        >>> sorted(term.hyper)
        ['of_critic', 'of_net', 'scale', 'weight']

    Checked against:
        A loop with torch's binary cross-entropy.

    Peers:
        Code of others with a switch for GVB has these weights, from p log(p + 1e-5). pytorch-adapt's GVBE has
        1 + exp(-H), without gradient unless told so, divided by the sum and not the mean: a mean of the weighted rows
        is then smaller by the number of rows.

    References:
        Shuhao Cui, Shuhui Wang, Junbao Zhuo, Chi Su, Qingming Huang, Qi Tian.
        Gradually Vanishing Bridge for Adversarial Domain Adaptation. 2020.
        Mingsheng Long, Zhangjie Cao, Jianmin Wang, Michael I. Jordan.
        Conditional Adversarial Domain Adaptation. 2018.
    """

    def value(source: Tensor, target: Tensor, source_logits: Tensor, target_logits: Tensor) -> Tensor:
        w, v = ((-entropies(z)).exp() for z in wide(source_logits, target_logits))
        return align.weighted_domain_adversarial(source, target, w / w.detach().mean(), v / v.detach().mean())

    reads = (source_logits, target_logits, source_bridge, target_bridge)
    return _bridged(gvb_e, value, reads, critic, critic_bridge, of_net, of_critic, scale, weight)


def _bridged(
    about: Callable[..., Term],
    value: Loss,
    reads: tuple[Any, ...],
    critic: Adapter,
    critic_bridge: Adapter,
    of_net: Any,
    of_critic: Any,
    scale: Any,
    weight: Any,
) -> Term:
    """A term of two critics; `value` takes what they tell of each domain, and the reversed logits."""
    want_adapters(about.__name__, critic=critic, critic_bridge=critic_bridge)

    @claims(coupled=True, about=about)
    def loss(
        source_logits: Tensor,
        target_logits: Tensor,
        source_bridge: Tensor,
        target_bridge: Tensor,
        *,
        params: Mapping[str, Tensor],
        of_net: float | Tensor,
        of_critic: float | Tensor,
        scale: float | Tensor,
    ) -> Tensor:
        parts = {name: part(params, name) for name in ("critic", "bridge")}
        z, y = (align.gradient_reversal(x, scale) for x in (source_logits, target_logits))
        seen = z.softmax(1), y.softmax(1)
        taken = [critic_bridge.apply(parts["bridge"], p) for p in seen]
        told = [critic.apply(parts["critic"], p) - b for p, b in zip(seen, taken, strict=True)]
        own = value(told[0], told[1], z, y) + of_critic * align.bridge(*taken)
        return own + of_net * align.bridge(source_bridge, target_bridge)

    def init(generator: torch.Generator, source_logits: Tensor, *_: Tensor) -> Params:
        made = critic.init(generator, source_logits), critic_bridge.init(generator, source_logits)
        return {**under("critic", made[0]), **under("bridge", made[1])}

    numbers = {"of_net": of_net, "of_critic": of_critic, "scale": scale}
    return term(loss, *reads, weight=weight, params=init, **numbers)
