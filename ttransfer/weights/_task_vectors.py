"""Sums of task vectors: what tuning changed, added up, forgotten or subtracted."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._keyed import bits, fold
from ttransfer.core._maps import WeightMap
from ttransfer.weights._merging import Numbers, merged, named, numbers, party, real, statistic, wide
from ttransfer.weights._numbers import python_number, want_numbers
from ttransfer.weights._pool import MARK
from ttransfer.weights._routes import Route, Routes, Tensors, routed, spelt, taken

__all__ = ["dare", "task_arithmetic"]


def task_arithmetic(scale: Numbers = 1.0, *, base: str = "base") -> WeightMap:
    r"""Add task vectors to the checkpoint that all were tuned from; a negative one makes it forget that task.

    .. math:: \theta = \theta_0 + \sum_i \lambda_i\, (\theta_i - \theta_0)

    Running means and variances are averaged over the tuned checkpoints instead, for a sum may make a variance
    negative; better still is `tt.weights.batch_statistics`. Integer tensors are the base's, and so are all dtypes.

    Args:
        scale: one number for all; or name -> number, for these checkpoints alone; or a sequence or a tensor
            (checkpoints,), in the order in which `pool` was given them, the base left out. The paper tunes one number,
            about 0.3 to 0.4 for many tasks.
        base: its name in the pool.

    Returns:
        A `WeightMap` from a pool to one checkpoint.

    Raises:
        TransferError: at use, for a checkpoint that is not there, checkpoints that differ in names or shapes, or
            another number of scales.

    Example:
        >>> import torch, ttransfer as tt
        >>> start, a, b = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 2.0])}
        >>> tt.weights.task_arithmetic(0.5).apply(tt.weights.pool(base=start, a=a, b=b), {})["w"]
        tensor([0.5000, 1.0000])

    References:
        Gabriel Ilharco, Marco Tulio Ribeiro, Mitchell Wortsman, Suchin Gururangan, Ludwig Schmidt, Hannaneh Hajishirzi,
        Ali Farhadi. Editing Models with Task Arithmetic. 2023.
    """
    want_numbers("task_arithmetic", "scale", scale)

    def routes(src: Tensors, like: Tensors) -> Routes:
        who = party("task_arithmetic", src, names=named(scale), base=base)

        def make(start: Tensor, *tuned: Tensor) -> Tensor:
            scales = numbers("task_arithmetic", scale, who.names, start).to(start.dtype)
            return start + torch.tensordot(scales, torch.stack(tuned) - start, 1)

        return merged(src, who, f"{base} and {len(who.names)} task vectors", make)

    return routed(routes)


def dare(drop: float = 0.9, *, seed: int = 0, base: str = "base") -> WeightMap:
    r"""Drop most of every task vector at random, and scale up the rest: a pool for any map that adds task vectors.

    .. math:: \theta_i' = \theta_0 + \frac{m_i \odot (\theta_i - \theta_0)}{1 - p},
        \qquad m_i \sim \text{Bernoulli}(1 - p)

    The expectation of the result is what it was. What is dropped follows from the seed, the checkpoint's name and the
    tensor's name, on any device. Running means and variances, integer tensors and the base are passed on.

    Args:
        drop: probability p, a Python number from 0 up to but not 1.
        seed: another number drops others.
        base: its name in the pool.

    Returns:
        A `WeightMap` from pool to pool, for ``chain(dare(0.9), task_arithmetic(0.5))`` or ``chain(dare(0.9), ties())``.

    Raises:
        TransferError: for another `drop`; at use, for a base that is not there, or checkpoints that differ in names or
            shapes.

    Example:
        >>> import torch, ttransfer as tt
        >>> both = tt.weights.pool(base={"w": torch.zeros(8)}, tuned={"w": torch.ones(8)})
        >>> tt.weights.dare(0.5).apply(both, {})["tuned/w"]
        tensor([0., 2., 0., 2., 2., 2., 0., 2.])

    References:
        Le Yu, Bowen Yu, Haiyang Yu, Fei Huang, Yongbin Li. Language Models are Super Mario: Absorbing Abilities from
        Homologous Models as a Free Lunch. 2024.
    """
    python_number("dare", "drop", drop)
    python_number("dare", "seed", seed, whole=True)
    if not 0 <= drop < 1:
        raise TransferError(f"dare: drop must be from 0 up to but not 1, got {drop!r}")

    def routes(src: Tensors, like: Tensors) -> Routes:
        party("dare", src, base=base)
        made: dict[str, Route] = {}
        for name, x in src.items():
            member, _, tensor = name.partition(MARK)
            if member == base or not real(x) or statistic(tensor):
                made[name] = taken(name)
            else:
                how = f"{spelt(drop)} of the task vector dropped, seed {seed}"
                made[name] = Route((f"{base}{MARK}{tensor}", name), _dropping(drop, seed, name), how)
        return Routes(made)

    return routed(routes)


def _dropping(drop: float, seed: int, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    def make(start: Tensor, tuned: Tensor) -> Tensor:
        key = torch.zeros(1, dtype=torch.int64, device=tuned.device)
        words = bits(fold(fold(key, seed), _word(name)), math.prod(tuned.shape))
        kept = (words >= round(drop * 2**32)).reshape(tuned.shape)
        dtype = wide(tuned)
        low, change = start.to(dtype), tuned.to(dtype) - start.to(dtype)
        return (low + torch.where(kept, change / (1 - drop), torch.zeros_like(change))).to(tuned.dtype)

    return make


def _word(name: str) -> int:
    """A name as 32 bits (FNV-1a), by arithmetic that a compiler can follow."""
    word = 0x811C9DC5
    for letter in name:
        word = (word ^ ord(letter)) * 0x01000193 & 0xFFFFFFFF
    return word
