"""Critics and features that learn in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer.core import Term, term

__all__ = ["adda", "domain_confusion", "fooled"]

Critic = Callable[[Tensor], Tensor]


def adda(source: Any, target: Any, critic: Any, *, weight: Any = 1.0) -> dict[str, dict[str, Term]]:
    """The two phases of ADDA, for `tt.alternate`.

    - "critic" trains a critic to tell the domains apart: `tt.align.domain_adversarial`;
    - "encoder" trains the target's encoder so that the critic takes target for source: `tt.align.adda`.

    In the paper the source's encoder has been trained before and stays, and the target's begins as its copy. Let both
    phases force the encoders' mode: a net that a phase does not train runs there in eval mode.

    Args:
        source: the read of source features, such as "old(source).fc:in".
        target: the read of target features, such as "new(target).fc:in".
        critic: the read of the critic as a function, such as "critic:fn": features -> one logit per item.
        weight: of the encoder's loss.

    Returns:
        phase -> name -> Term.

    Example:
        >>> import torch, ttransfer as tt
        >>> old, new, critic = (tt.functional(torch.nn.Linear(3, d)) for d in (3, 3, 1))
        >>> nets = {"old": old, "new": new, "critic": critic}
        >>> phases = tt.terms.adda("old(source)", "new(target)", "critic:fn")
        >>> game = tt.alternate(
        ...     critic=tt.step(nets, tt.optim.adam(1e-3), phases["critic"], trainable=("critic",)),
        ...     encoder=tt.step(nets, tt.optim.adam(1e-3), phases["encoder"], trainable=("new",)))

    Checked against:
        An imperative loop.

    Peers:
        pytorch-adapt, ADAPT and TLlib have it. pytorch-adapt trains the encoder only in steps in which the critic is
        right in more than 0.6 of the rows.

    References:
        Eric Tzeng, Judy Hoffman, Kate Saenko, Trevor Darrell.
        Adversarial Discriminative Domain Adaptation. 2017.
    """
    return fooled(adda, source, target, critic, weight)


def domain_confusion(source: Any, target: Any, critic: Any, *, weight: Any = 1.0) -> dict[str, dict[str, Term]]:
    """The two phases of domain confusion, for `tt.alternate`.

    - "critic" trains a critic to tell the domains apart: `tt.align.domain_adversarial`;
    - "features" trains the features so that it finds neither likelier: `tt.align.domain_confusion`. Add the task to it.

    Args:
        source: the read of source features.
        target: the read of target features.
        critic: the read of the critic as a function, such as "critic:fn": features -> one logit per item.
        weight: of the features' loss; the paper has 0.01.

    Returns:
        phase -> name -> Term.

    Example:
        >>> import torch, ttransfer as tt
        >>> nets = {"net": tt.functional(torch.nn.Linear(3, 3)), "critic": tt.functional(torch.nn.Linear(3, 1))}
        >>> phases = tt.terms.domain_confusion("net(source)", "net(target)", "critic:fn", weight=0.01)
        >>> game = tt.alternate(
        ...     critic=tt.step(nets, tt.optim.adam(1e-3), phases["critic"], trainable=("critic",)),
        ...     features=tt.step(nets, tt.optim.adam(1e-3), phases["features"], trainable=("net",)))

    Checked against:
        An imperative loop.

    References:
        Eric Tzeng, Judy Hoffman, Trevor Darrell, Kate Saenko.
        Simultaneous Deep Transfer Across Domains and Tasks. 2015.
    """

    @claims(coupled=True, about=domain_confusion)
    def confuse(source: Tensor, target: Tensor, critic: Critic) -> Tensor:
        return align.domain_confusion(critic(source), critic(target))

    return {
        "critic": {"critic": _critic(domain_confusion, source, target, critic)},
        "features": {"confusion": term(confuse, source, target, critic, weight=weight)},
    }


def fooled(about: Callable[..., Any], source: Any, target: Any, critic: Any, weight: Any) -> dict[str, dict[str, Term]]:
    """The phases of a game in which what is read of the target learns to be taken for the source."""

    @claims(coupled=False, about=about)
    def fool(target: Tensor, critic: Critic) -> Tensor:
        return align.adda(critic(target))

    return {
        "critic": {"critic": _critic(about, source, target, critic)},
        "encoder": {"encoder": term(fool, target, critic, weight=weight)},
    }


def _critic(about: Callable[..., Any], source: Any, target: Any, critic: Any) -> Term:
    """What a critic minimises in its own phase."""

    @claims(coupled=True, about=about)
    def tell(source: Tensor, target: Tensor, critic: Critic) -> Tensor:
        return align.domain_adversarial(critic(source.detach()), critic(target.detach()))

    return term(tell, source, target, critic)
