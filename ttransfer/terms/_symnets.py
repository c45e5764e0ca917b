"""Domain-symmetric networks."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer.core import Term, term

__all__ = ["symnets"]


def symnets(source: Any, target: Any, labels: Any, *, weight: Any = 1.0) -> dict[str, dict[str, Term]]:
    """The two phases of domain-symmetric networks, for `tt.alternate`: a classifier for each domain.

    - "heads" trains both classifiers on labelled source rows, and each to take the rows of its own domain:
      `tt.align.symnets_domain`;
    - "body" trains the features so that both find a source row's class, and take a target row, alike:
      `tt.align.symnets_category`, `tt.align.symnets_confusion`; and so that classes are sure:
      `tt.align.symnets_entropy`.

    The source's classifier is the first of each pair; predict with the second, which is the target's.

    Args:
        source: two reads, of both classifiers' logits (n, classes) of source rows.
        target: two reads, of their logits (m, classes) of target rows.
        labels: the read of the source's labels, none of which is ignored.
        weight: of confusion and entropy; the paper raises it from 0 to 1, see `tt.schedules.ramp`.

    Returns:
        phase -> name -> Term.

    Raises:
        TransferError: for source or target that are not two reads.

    Example:
        >>> import ttransfer as tt
        >>> pairs = [[f"net({domain})[{i}]" for i in (0, 1)] for domain in ("source", "target")]
        >>> phases = tt.terms.symnets(*pairs, "source.y", weight=tt.schedules.ramp(1000))
        >>> {phase: list(terms) for phase, terms in phases.items()}
        {'heads': ['one', 'two', 'domain'], 'body': ['category', 'confusion', 'entropy']}

    Checked against:
        An imperative loop.

    Peers:
        pytorch-adapt has it; see `tt.align.symnets_category`.

    References:
        Yabin Zhang, Hui Tang, Kui Jia, Mingkui Tan.
        Domain-Symmetric Networks for Adversarial Domain Adaptation. 2019.
    """
    for pair in (source, target):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or hasattr(pair, "_fields"):
            raise TransferError(f"symnets: wanted two reads, one of each classifier, got {pair!r} {shown(pair)}")

    @claims(coupled=True, about=symnets)
    def domain(source: Tensor, target: Tensor, other_source: Tensor, other_target: Tensor) -> Tensor:
        return align.symnets_domain(source, target, other_source, other_target)

    return {
        "heads": {
            "one": term(F.cross_entropy, source[0], labels),
            "two": term(F.cross_entropy, source[1], labels),
            "domain": term(domain, source[0], target[0], source[1], target[1]),
        },
        "body": {
            "category": term(align.symnets_category, *source, labels),
            "confusion": term(align.symnets_confusion, *target, weight=weight),
            "entropy": term(align.symnets_entropy, *target, weight=weight),
        },
    }
