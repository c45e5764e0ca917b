"""Pseudo-labels from neighbours, with the memory of the target's rows in the term's state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer.core import Term, term

__all__ = ["atdoc"]


def atdoc(
    logits: Any,
    features: Any,
    index: Any,
    *,
    rows: int,
    neighbours: int = 5,
    temperature: Any = 0.5,
    weight: Any = 1.0,
) -> Term:
    """Learn the labels that neighbours in the target vote for: `tt.align.atdoc`, with its memory.

    The memory of the whole target's features and predictions is a state of the term: random directions and equal
    probabilities at first, then what was seen last of each row. The vote is taken before the batch is written. The
    authors write it after the net's update, from another pass in eval mode; here it is this pass's. While most of the
    memory is not written yet the votes say nothing: let the weight grow. The authors' goes from 0 to 0.2 over the run,
    in a straight line: ``weight=tt.schedules.linear(0.0, 0.2, steps)``.

    Args:
        logits: the read of the target's logits, (n, classes).
        features: the read of its features, (n, d).
        index: the read of the rows' numbers in the target, (n,) int64, each once: a field of the batch such as
            "target.index".
        rows: of the target as a whole.
        neighbours: how many vote.
        temperature: below 1 it sharpens what is written.
        weight: of the term.

    Returns:
        A Term.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.atdoc("net(target)", "net(target).fc:in", "target.index", rows=5000, weight=0.1)
        >>> sorted(term.hyper), term.coupled
        (['temperature', 'weight'], True)

    References:
        Jian Liang, Dapeng Hu, Jiashi Feng. Domain Adaptation with Auxiliary Target Domain-Oriented Classifier. 2021.
    """

    @claims(coupled=True, about=atdoc)
    def loss(
        logits: Tensor, features: Tensor, index: Tensor, *, state: Any, temperature: float | Tensor = 0.5
    ) -> tuple[Tensor, Any]:
        memory = align.Memory(state["features"], state["probabilities"])
        votes = align.neighbourhood(features, index, memory, neighbours=neighbours)
        new = align.remember(memory, features, logits, index, temperature=temperature)
        return align.atdoc(logits, votes), {"features": new.features, "probabilities": new.probabilities}

    def init(generator: torch.Generator, logits: Tensor, features: Tensor, index: Tensor) -> Any:
        device, dtype = generator.device, torch.promote_types(features.dtype, torch.float32)
        start = torch.rand(rows, features.shape[1], generator=generator, device=device, dtype=dtype)
        even = torch.full((rows, logits.shape[1]), 1 / logits.shape[1], device=device, dtype=dtype)
        return {"features": torch.nn.functional.normalize(start), "probabilities": even}

    return term(loss, logits, features, index, weight=weight, state=init, temperature=temperature)
