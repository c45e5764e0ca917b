"""Pseudo-labels from the nearest class centre, with the target's centres in the term's state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer.core import Term, term

__all__ = ["atdoc_nc"]


def atdoc_nc(logits: Any, features: Any, *, momentum: Any = 0.1, weight: Any = 1.0) -> Term:
    """Learn the labels of the nearest class centres in the target: `tt.align.atdoc_nc`, with its centres.

    The centres are a state of the term: random directions at first, then running means of the features of the rows
    that the net puts into each class. The labels are taken before the batch moves the centres. The authors move them
    after the net's update, by another pass in eval mode; here it is this pass's. Unlike `atdoc` it needs no numbers of
    the rows, and its memory is one row for each class. While the centres are random the labels say nothing: let the
    weight grow. The authors' goes from 0 to 0.1 over the run, in a straight line:
    ``weight=tt.schedules.linear(0.0, 0.1, steps)``.

    Args:
        logits: the read of the target's logits, (n, classes).
        features: the read of its features, (n, d).
        momentum: how far a batch moves the centres, from 0 to 1.
        weight: of the term.

    Returns:
        A Term.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.atdoc_nc("net(target)", "net(target).fc:in", weight=0.1)
        >>> sorted(term.hyper), term.coupled
        (['momentum', 'weight'], True)

    References:
        Jian Liang, Dapeng Hu, Jiashi Feng. Domain Adaptation with Auxiliary Target Domain-Oriented Classifier. 2021.
    """

    @claims(coupled=True, about=atdoc_nc)
    def loss(logits: Tensor, features: Tensor, *, state: Any, momentum: float | Tensor = 0.1) -> tuple[Tensor, Any]:
        centres = state["centres"]
        new = align.remember_centres(centres, features, logits, momentum=momentum)
        return align.atdoc_nc(logits, features, centres), {"centres": new}

    def init(generator: torch.Generator, logits: Tensor, features: Tensor) -> Any:
        device, dtype = generator.device, torch.promote_types(features.dtype, torch.float32)
        start = torch.rand(logits.shape[1], features.shape[1], generator=generator, device=device, dtype=dtype)
        return {"centres": torch.nn.functional.normalize(start)}

    return term(loss, logits, features, weight=weight, state=init, momentum=momentum)
