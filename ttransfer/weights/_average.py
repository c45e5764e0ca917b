"""Averages of checkpoints: soups, and a tuned net drawn back to where it came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import WeightMap
from ttransfer.core._types import Params
from ttransfer.weights._merging import Number, Numbers, merged, named, numbers, party, single
from ttransfer.weights._numbers import want_number, want_numbers
from ttransfer.weights._pool import members
from ttransfer.weights._routes import Routes, Tensors, routed

__all__ = ["average", "greedy_soup", "wise_ft"]


def average(weights: Numbers | None = None) -> WeightMap:
    r"""Average the checkpoints of a pool: a uniform soup, or a weighted one whose weights may be learned.

    .. math:: \theta = \sum_i w_i \theta_i \Big/ \sum_i w_i

    All members of the pool take part, a base too, unless a mapping of weights names some. The weights are divided by
    their sum, so that equal checkpoints give themselves back. Integer tensors, such as batch norm's counters, are those
    of the first in the pool that takes part. A soup of nets with batch norm wants `tt.weights.batch_statistics`
    afterwards. Where dtypes differ the result has one that holds all.

    Args:
        weights: name -> number, for these checkpoints alone; or a sequence or a tensor (checkpoints,), in the order in
            which `pool` was given them; None weighs all alike. Gradients go through tensors.

    Returns:
        A `WeightMap` from a pool to one checkpoint.

    Raises:
        TransferError: for what are no numbers, and Python numbers whose sum is 0; at use, for a checkpoint that is not
            there, checkpoints that differ in names or shapes, or another number of weights.

    Example:
        >>> import torch, ttransfer as tt
        >>> both = tt.weights.pool(a={"w": torch.zeros(2)}, b={"w": torch.ones(2)})
        >>> tt.weights.average().apply(both, {})["w"]
        tensor([0.5000, 0.5000])
        >>> tt.weights.average({"a": 1.0, "b": 3.0}).apply(both, {})["w"]
        tensor([0.7500, 0.7500])

    References:
        Mitchell Wortsman, Gabriel Ilharco, Samir Yitzhak Gadre, Rebecca Roelofs, Raphael Gontijo-Lopes, Ari S. Morcos,
        Hongseok Namkoong, Ali Farhadi, Yair Carmon, Simon Kornblith, Ludwig Schmidt. Model soups: averaging weights of
        multiple fine-tuned models improves accuracy without increasing inference time. 2022.
    """
    plain = weights.values() if isinstance(weights, Mapping) else weights
    if isinstance(weights, str):
        raise TransferError(f"average: wanted numbers as weights, got {weights!r}; to name checkpoints, name -> number")
    if weights is not None:
        want_numbers("average", "weights", weights)
    if plain is not None and not isinstance(plain, (Tensor, float, int)):
        plain = list(plain)
        if not plain or (not any(isinstance(w, Tensor) for w in plain) and sum(map(float, plain)) == 0):
            raise TransferError(f"average: the weights are divided by their sum, which must not be 0; got {weights!r}")

    def routes(src: Tensors, like: Tensors) -> Routes:
        who = party("average", src, names=named(weights))

        def make(*tensors: Tensor) -> Tensor:
            if weights is None:
                return torch.stack(tensors).mean(0)
            w = numbers("average", weights, who.names, tensors[0])
            return torch.tensordot((w / w.sum()).to(tensors[0].dtype), torch.stack(tensors), 1)

        return merged(src, who, f"{'mean' if weights is None else 'weighted mean'} of {len(who.names)}", make)

    return routed(routes)


def wise_ft(alpha: Number = 0.5, *, base: str = "base", tuned: str = "tuned") -> WeightMap:
    r"""Draw a fine-tuned net back towards where it was tuned from: less of the new task, more of the old robustness.

    .. math:: \theta = (1 - \alpha)\, \theta_\text{base} + \alpha\, \theta_\text{tuned}

    Args:
        alpha: 0 is the base, 1 the tuned net; a number or a tensor, through which gradients go.
        base: its name in the pool.
        tuned: its name in the pool.

    Returns:
        A `WeightMap` from a pool to one checkpoint; integer tensors are the base's.

    Raises:
        TransferError: at use, for a checkpoint that is not there, or checkpoints that differ in names or shapes.

    Example:
        >>> import torch, ttransfer as tt
        >>> both = tt.weights.pool(base={"w": torch.zeros(2)}, tuned={"w": torch.ones(2)})
        >>> tt.weights.wise_ft(alpha=0.25).apply(both, {})["w"]
        tensor([0.2500, 0.2500])

    References:
        Mitchell Wortsman, Gabriel Ilharco, Jong Wook Kim, Mike Li, Simon Kornblith, Rebecca Roelofs, Raphael
        Gontijo-Lopes, Hannaneh Hajishirzi, Ali Farhadi, Hongseok Namkoong, Ludwig Schmidt. Robust fine-tuning of
        zero-shot models. 2022.
    """
    want_number("wise_ft", "alpha", alpha)

    def make(start: Tensor, end: Tensor) -> Tensor:
        at = single(alpha, start)
        return (1 - at) * start + at * end

    def routes(src: Tensors, like: Tensors) -> Routes:
        who = party("wise_ft", src, names=(tuned,), base=base)
        return merged(src, who, "interpolated", make, statistics=make)

    return routed(routes)


def greedy_soup(pool: Tensors, score: Callable[[Params], float | Tensor]) -> tuple[str, ...]:
    """Choose the checkpoints of a soup: best first, each is added if the average does not score less with it.

    Of equals the first in the pool is tried first. The ingredients are averaged as `average` does. `score` is asked
    once for each checkpoint, and once more for each but the best.

    Args:
        pool: at least one checkpoint.
        score: parameters and buffers -> what they reach on held-out data, higher is better. Nets with batch norm want
            their statistics made anew in it, by `tt.weights.batch_statistics`.

    Returns:
        The names of the ingredients, best first, for ``average(dict.fromkeys(names, 1.0))``.

    Raises:
        TransferError: for checkpoints that differ in names or shapes, and a score that is no number or NaN: leave such
            a checkpoint out, or score it -inf.

    Example:
        >>> import torch, ttransfer as tt
        >>> many = tt.weights.pool({k: {"w": torch.tensor(at)} for k, at in (("a", 0.2), ("b", -0.3), ("c", 5.0))})
        >>> tt.weights.greedy_soup(many, lambda params: -params["w"].square())
        ('a', 'b')

    References:
        Mitchell Wortsman, Gabriel Ilharco, Samir Yitzhak Gadre, Rebecca Roelofs, Raphael Gontijo-Lopes, Ari S. Morcos,
        Hongseok Namkoong, Ali Farhadi, Yair Carmon, Simon Kornblith, Ludwig Schmidt. Model soups: averaging weights of
        multiple fine-tuned models improves accuracy without increasing inference time. 2022.
    """
    party("greedy_soup", pool)
    alone = {name: _scored(score, params, repr(name)) for name, params in members("greedy_soup", pool).items()}
    first, *others = sorted(alone, key=lambda name: -alone[name])
    chosen, best = (first,), alone[first]
    for name in others:
        tried = (*chosen, name)
        reached = _scored(score, average(dict.fromkeys(tried, 1.0)).apply(pool, {}), f"the average of {tried}")
        if reached >= best:
            chosen, best = tried, reached
    return chosen


def _scored(score: Callable[[Params], float | Tensor], params: Params, whose: str) -> float:
    given: Any = score(params)
    try:
        reached = float("" if isinstance(given, str) else given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TransferError(f"greedy_soup: wanted one number as the score of {whose}, got {shown(given)}") from error
    if math.isnan(reached):
        raise TransferError(f"greedy_soup: the score of {whose} is NaN, which is neither better nor worse")
    return reached
