"""Random numbers for losses: a pure function of the keys that a step gives the rows of a domain."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._keyed import bits, fold

__all__ = ["normal", "uniform"]


def uniform(keys: Tensor, *shape: int, stream: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw numbers from [0, 1) for each row, by the keys that a term reads as "source:keys".

    The keys follow from the seed of the state, the step and the number of the row in the whole batch. So a loss that
    draws in this way gives the same value eagerly, compiled, as a member of an ensemble, as a shard, and resumed.

    Args:
        keys: (n,) int64.
        shape: of the numbers for one row.
        stream: another number gives other draws: one for each of the things that a loss draws.
        dtype: float32, in steps of 2^-24, or float64, in steps of 2^-32.

    Returns:
        (n, *shape).

    Raises:
        TransferError: for what are no keys, another dtype, or a stream that is no whole number.

    Example:
        >>> import torch, ttransfer as tt
        >>> keys = torch.tensor([3, 5])
        >>> (tt.uniform(keys, 2, 2) < 0.5).shape
        torch.Size([2, 2, 2])
        >>> mask = tt.term(lambda x, keys: (x * tt.uniform(keys, 10)).mean(), "net(source)", "source:keys")
    """
    return _drawn("uniform", keys, shape, stream, dtype)


def normal(keys: Tensor, *shape: int, stream: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw normal numbers of mean 0 and variance 1 for each row, by the keys that a term reads as "source:keys".

    They are those of `uniform` sent through the inverse of the normal distribution, from the middle of each step, so
    that none is infinite: all are within ±5.5 in float32 and ±6.4 in float64.

    Args:
        keys: (n,) int64.
        shape: of the numbers for one row.
        stream: another number gives other draws, as for `uniform`.
        dtype: float32 or float64.

    Returns:
        (n, *shape).

    Raises:
        TransferError: as `uniform`.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.normal(torch.tensor([3, 5]), 2, 2).shape
        torch.Size([2, 2, 2])
        >>> noisy = tt.term(lambda x, keys: (x + tt.normal(keys, 10)).square().mean(), "net(source)", "source:keys")
    """
    numbers = _drawn("normal", keys, shape, stream, dtype)
    return math.sqrt(2) * torch.erfinv(2 * numbers - 1 + _STEP[dtype])


_STEP = {torch.float32: 2.0**-24, torch.float64: 2.0**-32}


def _drawn(called: str, keys: Any, shape: tuple[int, ...], stream: Any, dtype: torch.dtype) -> Tensor:
    """Whole numbers of steps, from 0 to below 1."""
    if not isinstance(keys, Tensor) or keys.ndim != 1 or keys.dtype != torch.int64:
        raise TransferError(f"{called}: wanted keys (n,) of int64, as 'source:keys' reads them, got {shown(keys)}")
    if dtype not in _STEP:
        raise TransferError(f"{called}: wanted torch.float32 or torch.float64, got {dtype}")
    if not isinstance(stream, int):
        raise TransferError(f"{called}: wanted a whole number for the stream, got {stream!r}")
    words = bits(fold(keys, stream), math.prod(shape))
    # As many bits as the mantissa holds: a number that rounds to 1 would be none of [0, 1).
    words = words >> 8 if dtype == torch.float32 else words
    return (words.to(dtype) * _STEP[dtype]).reshape(-1, *shape)
