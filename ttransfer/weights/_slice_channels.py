"""A narrower network: some channels of each group, in every tensor that has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._groups import Axis, Group, Wanted, channels_of, checked, length_of, numbered, passed
from ttransfer.weights._routes import Route, Routes, Tensors, routed

__all__ = ["slice_channels"]


def slice_channels(groups: Sequence[Group], keep: Wanted[Tensor | Sequence[int]]) -> WeightMap:
    """Take some channels of groups, in every tensor that has them: a pruned student from a dense teacher.

    The student is what the teacher is without these channels: where they would be zero. What sums over channels
    without a weight (`Group.mixed`) sums over fewer.

    Args:
        groups: of the teacher, as `channel_groups` finds them.
        keep: group, by its number or by a tensor that makes its channels -> int64 numbers of the channels that stay,
            which `most_important` can choose. They stay in the order in which they were.

    Returns:
        A `WeightMap` which passes on what is in none of these groups.

    Raises:
        TransferError: for a group that there is not, one that is fixed or not removable, groups that overlap
            (slice by one, and find the groups of the result), no channels or more than there are; at use, for a
            source that is not of the groups' network.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> groups = tt.weights.channel_groups(net, torch.zeros(1, 3))
        >>> prune = tt.weights.slice_channels(groups, {"0.weight": [0, 2, 5]})
        >>> prune.plan(net.state_dict(), {}).made["2.weight"].how
        'axis 1: channels 8 -> 3'
        >>> prune.apply(net.state_dict(), {})["2.weight"].shape
        torch.Size([2, 3])

    References:
        Li, Hao, Kadav, Asim, Durdanovic, Igor, Samet, Hanan, Graf, Hans Peter. Pruning Filters for Efficient
        ConvNets. 2017.
        Fang, Gongfan, Ma, Xinyin, Song, Mingli, Mi, Michael Bi, Wang, Xinchao. DepGraph: Towards Any Structural
        Pruning. 2023.
    """
    parts: dict[tuple[str, int], list[tuple[Axis, Group, Tensor]]] = {}
    for number, given in numbered("slice_channels", groups, keep).items():
        group = groups[number]
        kept = channels_of(given)
        if not group.removable:
            raise TransferError(f"slice_channels: group {number}: its channels cannot be taken away alone")
        kept = kept.cpu() if kept is not None else torch.empty(0, dtype=torch.int64, device="cpu")
        numbers: list[int] = kept.tolist()
        if not numbers or len({*numbers} & {*range(group.size)}) < len(numbers):
            got = f"{numbers[:8]}" if numbers else shown(given)
            raise TransferError(
                f"slice_channels: group {number} has {group.size} channels, got {got} to keep; want some of them, each "
                "once, by number"
            )
        for axis in group.axes:
            parts.setdefault((axis.name, axis.axis), []).append((axis, group, kept))
    left = {key: _kept(some) for key, some in sorted(parts.items())}

    def routes(src: Tensors, like: Tensors) -> Routes:
        made = passed(groups, src)
        by: dict[str, list[tuple[tuple[str, int], str]]] = {}
        for key, some in sorted(parts.items()):
            checked("slice_channels", some[0][0], src)
            counts = ", ".join(f"{group.size} -> {len(kept)}" for _, group, kept in some)
            by.setdefault(key[0], []).append((key, f"axis {key[1]}: channels {counts}"))
        for name, steps in by.items():
            cuts = [(key[1], left[key]) for key, _ in steps]
            made[name] = Route((name,), _cut(cuts), "; ".join(how for _, how in steps))
        return Routes(made)

    return routed(routes)


def _kept(some: Sequence[tuple[Axis, Group, Tensor]]) -> Tensor:
    """The entries of an axis that stay, in order: of these groups some, and all that are of no group."""
    axis = some[0][0]
    every = torch.cat([one.index.reshape(-1) for one, _, _ in some])
    if len(every.unique()) < len(every):
        raise TransferError(
            f"slice_channels: groups overlap in {axis.name!r}, as heads and their dimensions do; slice by one, and "
            "find the groups of the result"
        )
    rest = torch.ones(length_of(axis), dtype=torch.bool)
    rest[every] = False
    for one, _, kept in some:
        rest[one.index[kept]] = True
    return rest.nonzero().squeeze(1)


def _cut(steps: Sequence[tuple[int, Tensor]]) -> Callable[[Tensor], Tensor]:
    def make(x: Tensor) -> Tensor:
        for axis, index in steps:
            x = x.index_select(axis, index.to(x.device))
        return x

    return make
