"""Random numbers for losses: a pure function of the keys that a step gives the rows of a domain."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._keyed import bits, fold

__all__ = ["uniform"]


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
    if keys.ndim != 1 or keys.dtype != torch.int64:
        raise TransferError(f"uniform: wanted keys (n,) of int64, as 'source:keys' reads them, got {shown(keys)}")
    if dtype not in (torch.float32, torch.float64):
        raise TransferError(f"uniform: wanted torch.float32 or torch.float64, got {dtype}")
    if not isinstance(cast(Any, stream), int):
        raise TransferError(f"uniform: wanted a whole number for the stream, got {stream!r}")
    words = bits(fold(keys, stream), math.prod(shape))
    # As many bits as the mantissa holds: a number that rounds to 1 would be none of [0, 1).
    numbers = (words >> 8).to(dtype) * 2.0**-24 if dtype == torch.float32 else words.to(dtype) * 2.0**-32
    return numbers.reshape(-1, *shape)
