"""Domain-adversarial training with bridges that vanish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer.core import Adapter, Params, Term, term
from ttransfer.terms._parts import part, under, want_adapters

__all__ = ["gvb"]


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
    want_adapters("gvb", critic=critic, critic_bridge=critic_bridge)

    @claims(coupled=True, about=gvb)
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
        seen = [align.gradient_reversal(z, scale).softmax(1) for z in (source_logits, target_logits)]
        taken = [critic_bridge.apply(parts["bridge"], p) for p in seen]
        told = [critic.apply(parts["critic"], p) - b for p, b in zip(seen, taken, strict=True)]
        own = align.domain_adversarial(*told) + of_critic * align.bridge(*taken)
        return own + of_net * align.bridge(source_bridge, target_bridge)

    def init(generator: torch.Generator, source_logits: Tensor, *_: Tensor) -> Params:
        made = critic.init(generator, source_logits), critic_bridge.init(generator, source_logits)
        return {**under("critic", made[0]), **under("bridge", made[1])}

    reads = (source_logits, target_logits, source_bridge, target_bridge)
    numbers = {"of_net": of_net, "of_critic": of_critic, "scale": scale}
    return term(loss, *reads, weight=weight, params=init, **numbers)
