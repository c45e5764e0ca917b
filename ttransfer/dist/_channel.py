"""How the ranks of a group exchange tensors: torch.distributed, found by the group's name.

A name, because operations of a graph take no process groups. Other channels may be registered under names of their
own: the laws let threads of one process play the ranks.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from ttransfer.dist._faults import exchanging

__all__ = ["Channel", "channel", "register", "unregister"]


class Channel(Protocol):
    """What is asked of a group. All tensors are contiguous, and of one size on all ranks.

    `device` is where tensors must be that come from no state, such as numbers of rows.
    """

    rank: int
    size: int
    device: torch.device

    def all_gather(self, out: Tensor, own: Tensor) -> None:
        """Write every rank's `own` (n,) to `out` (size * n,), in the order of ranks."""
        ...

    def all_reduce(self, values: list[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks."""
        ...

    def reduce_scatter(self, out: Tensor, values: Tensor) -> None:
        """Write this rank's part of the sum over the ranks of `values` (size * n,) to `out` (n,)."""
        ...

    def broadcast(self, value: Tensor, source: int) -> None:
        """Replace a tensor by that of one rank."""
        ...


class _Group:
    """A process group of torch.distributed."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._ranks = dist.get_process_group_ranks(group)
        self._gloo = dist.get_backend(group) == "gloo"
        self.device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")

    def all_gather(self, out: Tensor, own: Tensor) -> None:
        with exchanging("gathering rows", self._ranks):
            dist.all_gather_into_tensor(out, own, group=self.group)

    def all_reduce(self, values: list[Tensor]) -> None:
        with exchanging("adding up gradients", self._ranks):
            # All are under way before the first is waited for.
            for work in [dist.all_reduce(value, group=self.group, async_op=True) for value in values]:
                if work is not None:
                    work.wait()

    def reduce_scatter(self, out: Tensor, values: Tensor) -> None:
        with exchanging("adding up gradients", self._ranks):
            if not self._gloo:
                dist.reduce_scatter_tensor(out, values, group=self.group)
                return
            # gloo's own is slower than its all-reduce: 127 to 50 ms for 64 MB over 2 ranks.
            whole = values.clone()
            dist.all_reduce(whole, group=self.group)
            out.copy_(whole.chunk(self.size)[self.rank])

    def broadcast(self, value: Tensor, source: int) -> None:
        with exchanging("taking the state of one rank", self._ranks):
            dist.broadcast(value, group=self.group, group_src=source)


_channels: dict[str, Channel] = {}


def channel(name: str) -> Channel:
    """Return the channel of a name: of a process group, unless another is registered under it."""
    found = _channels.get(name)
    if found is not None and not isinstance(found, _Group):
        return found
    group = cast(Any, distributed_c10d)._resolve_process_group(name)
    if found is None or found.group is not group:  # a group that is no more may have had the same name
        found = _channels[name] = _Group(group)
    return found


def register(name: str, made: Channel) -> None:
    """Put a channel under a name."""
    _channels[name] = made


def unregister(name: str) -> None:
    """Forget a channel."""
    _channels.pop(name, None)
