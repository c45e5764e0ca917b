"""Sliced Wasserstein distance along random lines, other ones at each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer.core import Term, normal, term
from ttransfer.terms._parts import keys_of

__all__ = ["sliced_wasserstein"]


def sliced_wasserstein(source: Any, target: Any, *, directions: int = 128, weight: Any = 1.0) -> Term:
    """Bring two domains together along random lines: `tt.align.sliced_wasserstein` at directions drawn for each step.

    They are drawn by the key of the source's first row, so that they are the same eagerly, compiled, sharded and
    resumed, and others at each step and for each member of an ensemble.

    Args:
        source: the read of source features, (n, d), or of predicted probabilities, for which it was made.
        target: the read of the same of the target, (m, d).
        directions: how many lines; the paper has 128.
        weight: of the term.

    Returns:
        A Term.

    Raises:
        TransferError: for fewer than one direction, or a source that is no read of a domain's rows.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.sliced_wasserstein("net(source).fc:in", "net(target).fc:in", weight=0.1)
        >>> sorted(term.hyper)
        ['weight']

    Checked against:
        `tt.align.sliced_wasserstein` at the directions written out.

    References:
        Chen-Yu Lee, Tanmay Batra, Mohammad Haris Baig, Daniel Ulbricht.
        Sliced Wasserstein Discrepancy for Unsupervised Domain Adaptation. 2019.
        Nicolas Bonneel, Julien Rabin, Gabriel Peyré, Hanspeter Pfister.
        Sliced and Radon Wasserstein Barycenters of Measures. 2015.
    """
    lines: Any = directions
    if isinstance(lines, bool) or not isinstance(lines, int) or lines < 1:
        raise TransferError(f"sliced_wasserstein: wanted a whole number of directions, at least 1, got {directions!r}")

    @claims(coupled=True, about=sliced_wasserstein, zero_at_equality=True, non_negative=True)
    def loss(source: Tensor, target: Tensor, keys: Tensor) -> Tensor:
        dtype = torch.float64 if source.dtype == torch.float64 else torch.float32
        drawn = normal(keys[:1], source.shape[-1], directions, dtype=dtype)[0]
        return align.sliced_wasserstein(source, target, drawn)

    return term(loss, source, target, keys_of("sliced_wasserstein", source), weight=weight)
