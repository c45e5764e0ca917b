"""Virtual adversarial training, with its random directions from the step's keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer.core import Term, normal, term

__all__ = ["vat"]


def vat(
    fn: Any, x: Any, keys: Any, *, radius: Any = 8.0, iterations: int = 1, coupled: bool = True, weight: Any = 1.0
) -> Term:
    """Keep predictions from changing where they change most: `tt.align.vat` at random directions.

    The directions are normal numbers drawn by the keys of the rows, so that they are the same eagerly, compiled, in
    an ensemble, sharded and resumed. The net is called three times, with one and the same dropout.

    Args:
        fn: the read of the net as a function, "net:fn".
        x: the read of its inputs, (n, ...), such as "target.x".
        keys: the read of their keys, "target:keys".
        radius: how far the inputs are moved, in their units.
        iterations: of the power iteration.
        coupled: False for a net that looks at each row by itself, so that the batch may be split; with batch
            normalisation in train mode it must stay True, and the step cannot be sharded.
        weight: of the term.

    Returns:
        A Term.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.vat("student:fn", "target.x", "target:keys", radius=3.5, weight=0.01)
        >>> sorted(term.hyper)
        ['radius', 'weight']

    References:
        Takeru Miyato, Shin-ichi Maeda, Masanori Koyama, Shin Ishii. Virtual Adversarial Training: A Regularization
        Method for Supervised and Semi-Supervised Learning. 2018.
        Rui Shu, Hung H. Bui, Hirokazu Narui, Stefano Ermon. A DIRT-T Approach to Unsupervised Domain Adaptation. 2018.
    """

    @claims(coupled=coupled, about=vat)
    def loss(
        fn: Callable[[Tensor], Tensor], x: Tensor, keys: Tensor, *, radius: float | Tensor, iterations: int = 1
    ) -> Tensor:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return align.vat(fn, x, normal(keys, *x.shape[1:], dtype=dtype), radius=radius, iterations=iterations)

    if not coupled:
        return term(loss, fn, x, keys, weight=weight, count=_rows, coupled=False, radius=radius, iterations=iterations)
    return term(loss, fn, x, keys, weight=weight, radius=radius, iterations=iterations)


def _rows(fn: Any, x: Tensor, keys: Tensor) -> int:
    return x.shape[0]
