"""Collectives as operations of a graph, which may be vmapped.

torch's functional collectives are silently wrong under vmap. These take the members of a vmap along as one more axis,
so that an ensemble exchanges what its members need in one message. They have no gradient: a sharded step calls them
outside of every differentiation (see `_update`), and normalisation has a rule of its own (see `_norms`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

from ttransfer.dist._channel import channel

__all__ = ["all_gather", "all_reduce", "all_reduce_joined", "by_dtype", "gather_rows", "reduce_scatter"]

_ALIGNED = 16  # bytes: a segment may be looked at as any dtype


@torch.library.custom_op("ttransfer::gather_rows", mutates_args=())
def gather_rows(
    xs: Sequence[Tensor], counts: Tensor, which: Sequence[int], sizes: Sequence[int], group: str
) -> list[Tensor]:
    """Put the rows of all ranks together, for many tensors in one message.

    Args:
        xs: this rank's rows, each (n * k, ...): k entries for each row of its domain.
        counts: (domains, ranks) int64 on the CPU, the number of rows of every domain on every rank.
        which: for each tensor, its domain.
        sizes: for each tensor, how many entries it has on all ranks together.
        group: the name of the group.

    Returns:
        Each tensor with the rows of all ranks, in the order of ranks.
    """
    to = channel(group)
    rows: list[list[int]] = counts.tolist()
    if to.size == 1:
        return [x.clone() for x in xs]
    lengths = [_entries(x, rows[d], to.rank) for x, d in zip(xs, which, strict=True)]
    widths = [_padded(max(each) * _width(x)) for x, each in zip(xs, lengths, strict=True)]
    own = torch.empty(sum(widths), dtype=torch.uint8, device=xs[0].device)
    for segment, x in zip(own.split(widths), xs, strict=True):
        segment[: x.numel() * x.element_size()].view(x.dtype).view(x.shape).copy_(x)
    everything = own.new_empty(to.size * own.numel())
    to.all_gather(everything, own)
    messages = [message.split(widths) for message in everything.chunk(to.size)]
    found: list[Tensor] = []
    for i, (x, each) in enumerate(zip(xs, lengths, strict=True)):
        parts = [
            message[i][: n * _width(x)].view(x.dtype).view(n, *x.shape[1:])
            for message, n in zip(messages, each, strict=True)
        ]
        found.append(torch.cat(parts))
    return found


def _entries(x: Tensor, rows: list[int], rank: int) -> list[int]:
    """How many entries of a tensor each rank has."""
    return [n * (x.shape[0] // rows[rank]) for n in rows]


def _width(x: Tensor) -> int:
    return math.prod(x.shape[1:]) * x.element_size()


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


@gather_rows.register_fake
def _(xs: Sequence[Tensor], counts: Tensor, which: Sequence[int], sizes: Sequence[int], group: str) -> list[Tensor]:
    return [x.new_empty(size, *x.shape[1:]) for x, size in zip(xs, sizes, strict=True)]


def _rows_of_members(info: Any, dims: Any, xs: Any, counts: Any, which: Any, sizes: Any, group: str) -> Any:
    axes = dims[0]
    last = [x if axis is None else x.movedim(axis, -1) for x, axis in zip(xs, axes, strict=True)]
    out = gather_rows(last, counts, which, sizes, group)
    return out, [None if axis is None else x.ndim - 1 for x, axis in zip(out, axes, strict=True)]


gather_rows.register_vmap(_rows_of_members)


@torch.library.custom_op("ttransfer::all_reduce", mutates_args=())
def all_reduce(xs: Sequence[Tensor], group: str) -> list[Tensor]:
    """Sum each tensor over the ranks.

    Args:
        xs: of any shapes, the same on all ranks.
        group: the name of the group.
    """
    out = [x.clone(memory_format=torch.contiguous_format) for x in xs]
    channel(group).all_reduce(out)
    return out


@all_reduce.register_fake
def _(xs: Sequence[Tensor], group: str) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in xs]


def _sums_of_members(info: Any, dims: Any, xs: Any, group: str) -> Any:
    return all_reduce(xs, group), dims[0]


all_reduce.register_vmap(_sums_of_members)


@torch.library.custom_op("ttransfer::all_reduce_joined", mutates_args=())
def all_reduce_joined(xs: Sequence[Tensor], group: str) -> list[Tensor]:
    """Sum tensors over the ranks, end to end: joined here, each is copied once.

    Args:
        xs: of any shapes and dtypes, the same on all ranks.
        group: the name of the group.

    Returns:
        For each dtype, in the order of first mention, the sums of all entries of its tensors, (n,).
    """
    out = [torch.cat([xs[i].reshape(-1) for i in places]) for places in by_dtype(xs).values()]
    channel(group).all_reduce(out)
    return out


def by_dtype(xs: Sequence[Tensor]) -> dict[torch.dtype, list[int]]:
    """dtype -> the places of its tensors."""
    found: dict[torch.dtype, list[int]] = {}
    for i, x in enumerate(xs):
        found.setdefault(x.dtype, []).append(i)
    return found


@all_reduce_joined.register_fake
def _(xs: Sequence[Tensor], group: str) -> list[Tensor]:
    return [xs[places[0]].new_empty(sum(xs[i].numel() for i in places)) for places in by_dtype(xs).values()]


def _joined_of_members(info: Any, dims: Any, xs: Any, group: str) -> Any:
    n = info.batch_size
    last = [
        x.unsqueeze(-1).expand(*x.shape, n) if axis is None else x.movedim(axis, -1)
        for x, axis in zip(xs, dims[0], strict=True)
    ]
    return [flat.view(-1, n) for flat in all_reduce_joined(last, group)], [1] * len(by_dtype(xs))


all_reduce_joined.register_vmap(_joined_of_members)


@torch.library.custom_op("ttransfer::reduce_scatter", mutates_args=())
def reduce_scatter(x: Tensor, size: int, group: str) -> Tensor:
    """Sum over the ranks and keep this rank's part.

    Args:
        x: (size * n, ...).
        size: of the group.
        group: its name.

    Returns:
        (n, ...).
    """
    out = x.new_empty(x.shape[0] // size, *x.shape[1:])
    channel(group).reduce_scatter(out.view(-1), x.contiguous().view(-1))
    return out


@reduce_scatter.register_fake
def _(x: Tensor, size: int, group: str) -> Tensor:
    return x.new_empty(x.shape[0] // size, *x.shape[1:])


def _parts_of_members(info: Any, dims: Any, x: Any, size: int, group: str) -> Any:
    return reduce_scatter(x.movedim(dims[0], -1), size, group), x.ndim - 1


reduce_scatter.register_vmap(_parts_of_members)


@torch.library.custom_op("ttransfer::all_gather", mutates_args=())
def all_gather(x: Tensor, size: int, group: str) -> Tensor:
    """Put every rank's tensor into one.

    Args:
        x: (n, ...), the same shape on all ranks.
        size: of the group.
        group: its name.

    Returns:
        (size * n, ...), in the order of ranks.
    """
    out = x.new_empty(size * x.shape[0], *x.shape[1:])
    channel(group).all_gather(out.view(-1), x.contiguous().view(-1))
    return out


@all_gather.register_fake
def _(x: Tensor, size: int, group: str) -> Tensor:
    return x.new_empty(size * x.shape[0], *x.shape[1:])


def _all_of_members(info: Any, dims: Any, x: Any, size: int, group: str) -> Any:
    return all_gather(x.movedim(dims[0], -1), size, group), x.ndim - 1


all_gather.register_vmap(_all_of_members)


# Exchanges that do not depend on each other might be compiled into one order on one rank and into another on the next,
# whose rows, or part of the optimizer's state, have other shapes. With an ordered effect they stay in the program's.
for _exchange in (gather_rows, all_reduce, all_reduce_joined, reduce_scatter, all_gather):
    _register_effectful_op(_exchange._opoverload, _EffectType.ORDERED)
