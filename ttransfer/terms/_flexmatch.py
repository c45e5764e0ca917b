"""FixMatch with thresholds that follow the classes, and the labels of all rows in the term's state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer.align._check import whole
from ttransfer.core import Term, term

__all__ = ["flexmatch"]


def flexmatch(
    strong: Any, weak: Any, index: Any, *, rows: int, threshold: Any = 0.95, warm_up: bool = True, weight: Any = 1.0
) -> Term:
    """Learn the labels of an easy view, where each class has its own threshold: `tt.align.flexmatch`, with its memory.

    The last sure label of each of the target's rows is a state of the term, none at first. The thresholds are taken
    from it before the batch is written: they are 0 at the start, when every row is learned.

    Args:
        strong: the read of the logits of the strongly augmented rows, (n, classes).
        weak: the read of those of the weakly augmented ones, (n, classes).
        index: the read of the rows' numbers in the target, (n,) int64, each once: a field of the batch such as
            "weak.index".
        rows: of the target as a whole.
        threshold: the highest, that of the class with most rows, and that of what is written.
        warm_up: as for `tt.align.flexible_thresholds`.
        weight: of the term.

    Returns:
        A Term.

    Raises:
        TransferError: for fewer than one row.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.flexmatch("net(strong)", "net(weak)", "weak.index", rows=50000)
        >>> sorted(term.hyper), term.coupled
        (['threshold', 'weight'], True)

    References:
        Bowen Zhang, Yidong Wang, Wenxin Hou, Hao Wu, Jindong Wang, Manabu Okumura, Takahiro Shinozaki.
        FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling. 2021.
    """
    whole("flexmatch", 1, rows=rows)

    @claims(coupled=True, about=flexmatch)
    def loss(
        strong: Tensor, weak: Tensor, index: Tensor, *, state: Any, threshold: float | Tensor = 0.95
    ) -> tuple[Tensor, Any]:
        labels = state["labels"]
        limits = align.flexible_thresholds(labels, classes=weak.shape[1], threshold=threshold, warm_up=warm_up)
        new = align.remember_labels(labels, weak, index, threshold=threshold)
        return align.flexmatch(strong, weak, limits), {"labels": new}

    def init(generator: torch.Generator, *_: Tensor) -> Any:
        return {"labels": torch.full((rows,), -1, device=generator.device)}

    return term(loss, strong, weak, index, weight=weight, state=init, threshold=threshold)
