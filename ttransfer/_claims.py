"""What a loss says of itself: whether rows are coupled, and what its mean is over.

A loss that is a plain mean over examples can be split: over micro-batches, over ranks. A loss
that looks at pairs of rows (MMD, CORAL, relations) cannot. The losses of this library declare
which they are with `claims`; the losses of `torch.nn.functional` are declared here; any other
callable counts as coupled until its user says otherwise, because that is the safe reading.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Claims", "claims", "claims_of", "rows"]

Count = Callable[..., "Tensor | int"]
Fn = TypeVar("Fn", bound=Callable[..., Any])


class Claims(NamedTuple):
    """What is known of a loss.

    Attributes:
        coupled: True if the value for a batch is not the count-weighted mean of its parts' values.
        count: readings -> how many items the mean is over (rows, or valid labels).
        labels: (position of the logits, position of integer labels, ignored label), or None.
        own: True for this library's losses, whose float keywords all take tensors.
        tags: what else it says that it obeys, by the names of `ttransfer.testing.Tags`.
        about: what documents it, where that is another function.
    """

    coupled: bool = True
    count: Count | None = None
    labels: tuple[int, int, int] | None = None
    own: bool = False
    tags: Mapping[str, Any] = {}
    about: Callable[..., Any] | None = None


def rows(*readings: Any) -> int:
    """Count the rows of the first tensor among the readings."""
    for reading in readings:
        if isinstance(reading, Tensor) and reading.ndim:
            return reading.shape[0]
    return 1


def claims(
    *,
    coupled: bool,
    count: Count = rows,
    labels: tuple[int, int, int] | None = None,
    about: Callable[..., Any] | None = None,
    **tags: Any,
) -> Callable[[Fn], Fn]:
    """Declare a loss of this library; the function itself is returned unchanged.

    Args:
        coupled: as in `Claims`.
        count: as in `Claims`; not asked of what is coupled.
        labels: as in `Claims`.
        about: as in `Claims`.
        **tags: what the loss obeys beyond what its arguments' names say; the laws hold it to that.
    """

    def declare(fn: Fn) -> Fn:
        vars(fn)["claims"] = Claims(coupled, None if coupled else count, labels, own=True, tags=tags, about=about)
        return fn

    return declare


def claims_of(fn: Callable[..., Any], keywords: Mapping[str, Any] | None = None) -> Claims:
    """Return what is known of a callable under these keywords.

    Example:
        >>> claims_of(torch.nn.functional.cross_entropy).coupled
        False
        >>> claims_of(lambda x: x.mean()).coupled
        True
    """
    keywords = dict(keywords or {})
    while isinstance(fn, functools.partial):
        keywords = {**fn.keywords, **keywords}
        fn = fn.func
    own = getattr(fn, "claims", None)
    if isinstance(own, Claims):
        return own
    return _of_torch(fn, keywords)


_ELEMENTWISE = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.soft_margin_loss,
)


def _of_torch(fn: Callable[..., Any], keywords: Mapping[str, Any]) -> Claims:
    """The claims of `torch.nn.functional`'s losses that are means."""
    if keywords.get("reduction", "mean") != "mean":
        return Claims()
    if fn in (F.cross_entropy, F.nll_loss):
        ignored = int(keywords.get("ignore_index", -100))
        weight = keywords.get("weight")

        def valid(scores: Any, labels: Tensor, *_: Any) -> Tensor | int:
            if labels.is_floating_point():  # class probabilities: a mean over rows
                return labels.shape[0]
            kept = labels != ignored
            if weight is None:
                return kept.sum()
            return torch.where(kept, weight[torch.where(kept, labels, 0)], 0).sum()

        return Claims(False, valid, (0, 1, ignored))
    if fn in _ELEMENTWISE:
        return Claims(False, rows)
    return Claims()
