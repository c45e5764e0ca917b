"""Wasserstein-guided features, with their critic in one gradient or in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer.core import Adapter, Params, Term, term, uniform
from ttransfer.terms._parts import keys_of, want_adapters

__all__ = ["wdgrl", "wdgrl_phases"]

Critic = Callable[[Tensor], Tensor]


def wdgrl(
    source: Any,
    target: Any,
    *,
    critic: Adapter,
    penalty: Any = 10.0,
    scale: Any = 1.0,
    weight: Any = 1.0,
) -> Term:
    """Bring two domains together by the Wasserstein distance that a critic finds, in one gradient.

    The critic minimises -distance + penalty · (slope - 1)²; the features get the opposite of the gradient of the
    first part, times `scale`, so that they minimise the distance:

        -wdgrl(critic(R(source)), critic(R(target))) + penalty · gradient_penalty(critic, source, target)

    where R is the identity whose gradient is multiplied by ``-scale``. Rows are mixed by numbers that are drawn by the
    source's keys. The paper trains the critic 5 times for each step of the features: that is `wdgrl_phases`.

    Args:
        source: the read of source features, (n, d).
        target: the read of target features, (m, d).
        critic: features -> value (n, 1), for example `tt.adapters.mlp(100)`; its parameters belong to the term.
        penalty: weight of the gradient penalty.
        scale: strength of the reversed gradient.
        weight: of the term; it scales the critic's gradient and the features' alike.

    Returns:
        A Term. Its value is the critic's loss.

    Raises:
        TransferError: for a source that is no read of a domain's rows.

    Example:
        >>> import ttransfer as tt
        >>> reads = "net(source).fc:in", "net(target).fc:in"
        >>> sorted(tt.terms.wdgrl(*reads, critic=tt.adapters.mlp(100)).hyper)
        ['penalty', 'scale', 'weight']

    Checked against:
        A loop with torch.autograd, and the phases.

    References:
        Jian Shen, Yanru Qu, Weinan Zhang, Yong Yu.
        Wasserstein Distance Guided Representation Learning for Domain Adaptation. 2018.
    """
    want_adapters("wdgrl", critic=critic)

    @claims(coupled=True, about=wdgrl)
    def loss(
        source: Tensor,
        target: Tensor,
        keys: Tensor,
        *,
        params: Mapping[str, Tensor],
        penalty: float | Tensor,
        scale: float | Tensor,
    ) -> Tensor:
        def judge(x: Tensor) -> Tensor:
            return critic.apply(dict(params), x)

        s, t = (align.gradient_reversal(x, scale) for x in (source, target))
        return _critics(judge, s, t, keys, penalty)

    def init(generator: torch.Generator, source: Tensor, target: Tensor, keys: Tensor) -> Params:
        return critic.init(generator, source)

    keys = keys_of("wdgrl", source)
    return term(loss, source, target, keys, weight=weight, params=init, penalty=penalty, scale=scale)


def wdgrl_phases(
    source: Any, target: Any, critic: Any, *, penalty: Any = 10.0, weight: Any = 1.0
) -> dict[str, dict[str, Term]]:
    """The two phases of Wasserstein-guided features, for `tt.alternate`.

    - "critic" trains a critic to maximise the distance, its slope held near 1; the paper takes 5 steps of it;
    - "features" trains the features to minimise the distance. Add the task to it.

    Rows are mixed by numbers that are drawn by the source's keys.

    Args:
        source: the read of source features, (n, d).
        target: the read of target features, (m, d).
        critic: the read of the critic as a function, such as "critic:fn": features -> value (n, 1).
        penalty: weight of the gradient penalty.
        weight: of the features' distance.

    Returns:
        phase -> name -> Term.

    Raises:
        TransferError: for a source that is no read of a domain's rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> nets = {"net": tt.functional(torch.nn.Linear(3, 3)), "critic": tt.functional(torch.nn.Linear(3, 1))}
        >>> phases = tt.terms.wdgrl_phases("net(source)", "net(target)", "critic:fn")
        >>> game = tt.alternate(
        ...     critic=tt.step(nets, tt.optim.adam(1e-4), phases["critic"], trainable=("critic",)),
        ...     features=tt.step(nets, tt.optim.adam(1e-4), phases["features"], trainable=("net",)),
        ...     order=("critic",) * 5 + ("features",))

    Checked against:
        The game in one gradient.

    References:
        Jian Shen, Yanru Qu, Weinan Zhang, Yong Yu.
        Wasserstein Distance Guided Representation Learning for Domain Adaptation. 2018.
    """

    @claims(coupled=True, about=wdgrl_phases)
    def judge(source: Tensor, target: Tensor, keys: Tensor, critic: Critic, *, penalty: float | Tensor) -> Tensor:
        return _critics(critic, source.detach(), target.detach(), keys, penalty)

    @claims(coupled=True, about=wdgrl_phases)
    def distance(source: Tensor, target: Tensor, critic: Critic) -> Tensor:
        return align.wdgrl(critic(source), critic(target))

    keys = keys_of("wdgrl_phases", source)
    return {
        "critic": {"critic": term(judge, source, target, keys, critic, penalty=penalty)},
        "features": {"distance": term(distance, source, target, critic, weight=weight)},
    }


def _critics(critic: Critic, source: Tensor, target: Tensor, keys: Tensor, penalty: float | Tensor) -> Tensor:
    """What a critic minimises."""
    dtype = torch.float64 if source.dtype == torch.float64 else torch.float32
    mixing = uniform(keys, dtype=dtype)
    steep = align.gradient_penalty(critic, source, target, mixing)
    return penalty * steep - align.wdgrl(critic(source), critic(target))
