"""Adversarial entropy minimisation."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from ttransfer import align
from ttransfer._errors import TransferError
from ttransfer.core import Read, Term, read
from ttransfer.terms._adda import fooled

__all__ = ["advent"]


def advent(
    source: Any, target: Any, critic: Any, *, weight: Any = 0.001, variant: Literal["paper", "code"] = "paper"
) -> dict[str, dict[str, Term]]:
    """The two phases of AdvEnt, for `tt.alternate`: predictions on the target as sure as those on the source.

    - "critic" trains a critic to tell the domains apart by `tt.align.self_information` of their predictions;
    - "encoder" trains the net so that the critic takes target for source. Add the task to it.

    For the same game in one gradient, `tt.terms.dann` with the reads
    ``tt.read("net(source)") | tt.align.self_information`` and a critic of maps.

    Args:
        source: the read of the logits of source rows, (n, classes, h, w).
        target: the read of the logits of target rows.
        critic: the read of the critic as a function, such as "critic:fn": maps of as many channels as there are
            classes -> one logit per patch (n, 1, h', w').
        weight: of the net's loss.
        variant: as for `tt.align.self_information`.

    Returns:
        phase -> name -> Term.

    Raises:
        TransferError: for another variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> nets = {"net": tt.functional(torch.nn.Conv2d(1, 4, 1)), "critic": tt.functional(torch.nn.Conv2d(4, 1, 3))}
        >>> phases = tt.terms.advent("net(source)", "net(target)", "critic:fn")
        >>> game = tt.alternate(
        ...     critic=tt.step(nets, tt.optim.adam(1e-4), phases["critic"], trainable=("critic",)),
        ...     net=tt.step(nets, tt.optim.sgd(2.5e-4), phases["encoder"], trainable=("net",)))

    Checked against:
        An imperative loop.

    References:
        Tuan-Hung Vu, Himalaya Jain, Maxime Bucher, Matthieu Cord, Patrick Pérez.
        ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic Segmentation. 2019.
    """
    if variant not in ("paper", "code"):
        raise TransferError(f"advent: wanted variant 'paper' or 'code', got {variant!r}")

    def self_information(logits: Tensor) -> Tensor:
        return align.self_information(logits, variant=variant)

    def looked_at(path: Any) -> Read:
        return (read(path) if isinstance(path, str) else path) | self_information

    return fooled(advent, looked_at(source), looked_at(target), critic, weight)
