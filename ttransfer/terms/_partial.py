"""Adversarial adaptation to a target that lacks classes of the source, or has others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer.core import Adapter, Params, Term, term
from ttransfer.terms._parts import part, under, want_adapters

__all__ = ["iwan", "osbp", "pada"]


def pada(
    source: Any,
    target: Any,
    source_logits: Any,
    target_logits: Any,
    labels: Any,
    *,
    critic: Adapter,
    task: Any = 1.0,
    temperature: Any = 0.1,
    momentum: Any = 0.99,
    scale: Any = 1.0,
    weight: Any = 1.0,
) -> Term:
    """Partial adversarial adaptation: source rows count by how often the target is taken for their class.

        task / n · Σ γ[y] CE(logits, y) + 1/2 [ mean γ[y] BCE(critic(R(source)), 1) + mean BCE(critic(R(target)), 0) ]

    where R is the identity whose gradient is multiplied by ``-scale``, and γ is the mean prediction of target rows over
    its largest entry: `tt.align.class_weights`. The mean runs over steps and is the term's state; the paper takes it
    anew from all target rows every few hundred steps. This term holds the weighted task: give no other.

    Args:
        source: the read of source features, (n, d).
        target: the read of target features, (m, d).
        source_logits: the read of the logits of source rows, (n, classes).
        target_logits: the read of the logits of target rows, (m, classes); for γ alone, without gradient.
        labels: the read of the source's labels, (n,), none of which is ignored.
        critic: feature -> logit (n, 1); its parameters belong to the term.
        task: weight of the weighted cross-entropy; 0 leaves it out.
        temperature: of the predictions in γ; the paper has 1, TLlib 0.1.
        momentum: of the running mean of predictions, which begins even.
        scale: strength of the reversed gradient.
        weight: of the term.

    Returns:
        A Term.

    Raises:
        TransferError: for critics that are no Adapters.

    Example:
        >>> import ttransfer as tt
        >>> reads = "net(source).fc:in", "net(target).fc:in", "net(source)", "net(target)", "source.y"
        >>> sorted(tt.terms.pada(*reads, critic=tt.adapters.mlp(64)).hyper)
        ['momentum', 'scale', 'task', 'temperature', 'weight']

    Checked against:
        A loop.

    References:
        Zhangjie Cao, Lijia Ma, Mingsheng Long, Jianmin Wang. Partial Adversarial Domain Adaptation. 2018.
    """
    want_adapters("pada", critic=critic)

    @claims(coupled=True, about=pada)
    def loss(
        source: Tensor,
        target: Tensor,
        source_logits: Tensor,
        target_logits: Tensor,
        labels: Tensor,
        *,
        params: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        task: float | Tensor,
        temperature: float | Tensor,
        momentum: float | Tensor,
        scale: float | Tensor,
    ) -> tuple[Tensor, Params]:
        now = (target_logits.detach() / temperature).softmax(1).mean(0)
        mean = (state["mean"] * momentum + now * (1 - momentum)).to(state["mean"].dtype)
        w = (mean / mean.amax())[labels.long()]
        s, t = (critic.apply(dict(params), align.gradient_reversal(x, scale)) for x in (source, target))
        told = align.weighted_domain_adversarial(s, t, w, torch.ones_like(t.flatten(1)[:, 0]))
        known = (w * F.cross_entropy(source_logits, labels.long(), reduction="none")).mean()
        return told + task * known, {"mean": mean}

    def init(generator: torch.Generator, source: Tensor, *_: Tensor) -> Params:
        return critic.init(generator, source)

    def even(generator: torch.Generator, source: Tensor, target: Tensor, logits: Tensor, *_: Tensor) -> Params:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return {"mean": torch.full(logits.shape[1:2], 1 / logits.shape[1], dtype=dtype, device=generator.device)}

    reads = (source, target, source_logits, target_logits, labels)
    numbers = {"task": task, "temperature": temperature, "momentum": momentum, "scale": scale}
    return term(loss, *reads, weight=weight, params=init, state=even, **numbers)


def iwan(source: Any, target: Any, *, first: Adapter, critic: Adapter, scale: Any = 1.0, weight: Any = 1.0) -> Term:
    """Importance weighted adversarial nets: source rows count by how like the target a first critic finds them.

        domain_adversarial(first(source), first(target)) + 1/2 [ mean w BCE(critic(R(source)), 1)
                                                               + mean BCE(critic(R(target)), 0) ]

    where R is the identity whose gradient is multiplied by ``-scale``, and w is `tt.align.importance_weights` of the
    first critic, as constants. The first critic learns alone: features get nothing from it. The paper adds the entropy
    of target predictions: `tt.losses.entropy`.

    Args:
        source: the read of source features, (n, d).
        target: the read of target features, (m, d).
        first: feature -> logit (n, 1), the critic that gives the weights; its parameters belong to the term.
        critic: feature -> logit (n, 1), the critic that features unlearn; its parameters belong to the term.
        scale: strength of the reversed gradient.
        weight: of the term.

    Returns:
        A Term.

    Raises:
        TransferError: for critics that are no Adapters.

    Example:
        >>> import ttransfer as tt
        >>> reads = "net(source).fc:in", "net(target).fc:in"
        >>> term = tt.terms.iwan(*reads, first=tt.adapters.mlp(64), critic=tt.adapters.mlp(64))
        >>> sorted(term.hyper)
        ['scale', 'weight']

    Checked against:
        A loop.

    References:
        Jing Zhang, Zewei Ding, Wanqing Li, Philip Ogunbona.
        Importance Weighted Adversarial Nets for Partial Domain Adaptation. 2018.
    """
    want_adapters("iwan", first=first, critic=critic)

    @claims(coupled=True, about=iwan)
    def loss(source: Tensor, target: Tensor, *, params: Mapping[str, Tensor], scale: float | Tensor) -> Tensor:
        alone = [first.apply(part(params, "first"), x.detach()) for x in (source, target)]
        own = part(params, "critic")
        s, t = (critic.apply(own, align.gradient_reversal(x, scale)) for x in (source, target))
        w, even = align.importance_weights(alone[0]), torch.ones_like(t.flatten(1)[:, 0])
        return align.domain_adversarial(*alone) + align.weighted_domain_adversarial(s, t, w, even)

    def init(generator: torch.Generator, source: Tensor, target: Tensor) -> Params:
        made = first.init(generator, source), critic.init(generator, source)
        return {**under("first", made[0]), **under("critic", made[1])}

    return term(loss, source, target, weight=weight, params=init, scale=scale)


def osbp(target: Any, head: Any, *, threshold: Any = 0.5, scale: Any = 1.0, weight: Any = 1.0) -> Term:
    """Open-set adaptation by backpropagation: the head stays undecided, the features decide.

    The head, whose last class is the unknown, minimises `tt.align.osbp` of target rows; the features get the opposite
    of its gradient, times `scale`, in the same update. The head is a net of its own that the task trains too, on
    labelled source rows without the unknown class.

    Args:
        target: the read of target features, such as "body(target)".
        head: the read of the head as a function, such as "head:fn": features -> logits (m, classes + 1).
        threshold: the probability of the unknown class that the head is drawn to.
        scale: strength of the reversed gradient.
        weight: of the term; it scales the head's gradient and the features' alike.

    Returns:
        A Term.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> nets = {"body": tt.functional(torch.nn.Linear(4, 4)), "head": tt.functional(torch.nn.Linear(4, 3))}
        >>> def task(z, y, head):
        ...     return F.cross_entropy(head(z), y)
        >>> step = tt.step(nets, tt.optim.sgd(0.1), trainable=("body", "head"),
        ...                task=tt.term(task, "body(source)", "source.y", "head:fn"),
        ...                osbp=tt.terms.osbp("body(target)", "head:fn"))

    Checked against:
        A loop.

    References:
        Kuniaki Saito, Shohei Yamamoto, Yoshitaka Ushiku, Tatsuya Harada.
        Open Set Domain Adaptation by Backpropagation. 2018.
    """

    @claims(coupled=False, about=osbp)
    def loss(
        target: Tensor, head: Callable[[Tensor], Tensor], *, threshold: float | Tensor, scale: float | Tensor
    ) -> Tensor:
        return align.osbp(head(align.gradient_reversal(target, scale)), threshold=threshold)

    return term(loss, target, head, weight=weight, threshold=threshold, scale=scale)
