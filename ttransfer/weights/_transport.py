"""One net's channels in terms of another's: each new one a mean of old ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._groups import Axis, Group, checked, length_of, passed
from ttransfer.weights._merging import real, wide
from ttransfer.weights._routes import Route, Routes, Tensors, routed

__all__ = ["Moves", "alike", "carried", "moves_of", "transport_channels"]


class Moves(NamedTuple):
    """What becomes of one axis of one tensor.

    Attributes:
        old: the axis as it is.
        new: the axis as it will be.
        parts: (old entries, new entries, matrix or None for the same) of each group that is on it.
    """

    old: Axis
    new: Axis
    parts: tuple[tuple[Tensor, Tensor, Tensor | None], ...]


def transport_channels(
    groups: Sequence[Group],
    maps: Mapping[int, Tensor],
    others: Sequence[Group] | None = None,
    *,
    reads: Mapping[int, Tensor] | None = None,
) -> WeightMap:
    r"""Write a net's weights in terms of other channels, perhaps fewer or more: each new channel is a mean of old ones.

    .. math:: W' = P_\text{out}\, W P_\text{in}^\top

    on every axis of every tensor that a group names, with the group's :math:`P` (new channels, old channels). The map
    is differentiable in the weights and in the matrices. With two nets in a pool,
    ``chain(within("a", transport_channels(...)), average())`` fuses them.

    Args:
        groups: of the net whose weights these are.
        maps: index of a group -> (new channels, old channels), as `tt.weights.ot_alignment` gives it; groups that are
            not named stay as they are.
        others: groups of the net that it becomes; None if the widths are equal.
        reads: other matrices for where a tensor reads the channels rather than makes them. None is `maps`, as in the
            paper: a layer that reads n channels where it read m then gives about n / m of what it gave. The maps times
            m / n keep the sum: a net whose channels come in equal pairs gives the same with one of each.

    Returns:
        A `WeightMap`; integer tensors are passed on, and a running variance is a mean of variances.

    Raises:
        TransferError: for groups that do not go together, or a matrix of another shape; at use, for a tensor that is
            not there, or not of the groups' net.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> groups = tt.weights.channel_groups(net, torch.ones(1, 2))
        >>> free = next(i for i, group in enumerate(groups) if not group.fixed)
        >>> swap = {free: torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
        >>> new = tt.weights.transport_channels(groups, swap).apply(net.state_dict(), {})
        >>> torch.equal(new["0.bias"], net[0].bias.flip(0))
        True

    References:
        Sidak Pal Singh, Martin Jaggi. Model Fusion via Optimal Transport. 2020.
    """
    theirs = groups if others is None else others
    alike("transport_channels", groups, theirs)
    for given in (maps, reads or {}):
        for i, matrix in given.items():
            if i not in maps or not 0 <= i < len(groups) or groups[i].fixed:
                raise TransferError(f"transport_channels: there is no free group {i!r} of {len(groups)} to carry over")
            wanted = (theirs[i].size, groups[i].size)
            if matrix.shape != wanted:
                raise TransferError(f"transport_channels: the matrix of group {i} is {shown(matrix)}, wanted {wanted}")
    moves = moves_of("transport_channels", groups, theirs, maps, {**maps, **(reads or {})})

    def routes(src: Tensors, like: Tensors) -> Routes:
        made = passed(groups, src)
        for name, on in moves.items():
            for move in on:
                checked("transport_channels", move.old, src)
            if real(src[name]):
                made[name] = Route((name,), lambda x, on=on: carried(x, on), _told(on))
        return Routes(made)

    return routed(routes)


def _told(on: Sequence[Moves]) -> str:
    return "; ".join(f"axis {m.old.axis} carried over, {length_of(m.old)} -> {length_of(m.new)}" for m in on)


def alike(whose: str, groups: Sequence[Group], others: Sequence[Group]) -> None:
    """Check that two nets' groups are on the same axes of the same tensors.

    Raises:
        TransferError: if not.
    """
    if len(groups) != len(others):
        raise TransferError(f"{whose}: one net has {len(groups)} groups of channels, the other {len(others)}")
    for i, (one, two) in enumerate(zip(groups, others, strict=True)):
        a, b = ([(x.name, x.axis) for x in group.axes] for group in (one, two))
        if a != b or one.fixed != two.fixed or (one.fixed and one.size != two.size):
            raise TransferError(f"{whose}: group {i} of the one net, {a[0]}, does not go with {b[0]} of the other")


def moves_of(
    whose: str,
    groups: Sequence[Group],
    others: Sequence[Group],
    maps: Mapping[int, Tensor],
    reads: Mapping[int, Tensor],
) -> dict[str, list[Moves]]:
    """Say for each tensor what becomes of its axes."""
    parts: dict[tuple[str, int], list[tuple[int, Axis, Axis]]] = {}
    for i, (group, other) in enumerate(zip(groups, others, strict=True)):
        for one, two in zip(group.axes, other.axes, strict=True):
            if one.index.shape[1] != two.index.shape[1]:
                raise TransferError(
                    f"{whose}: {one.name!r} has {one.index.shape[1]} entries for each channel in the one net and "
                    f"{two.index.shape[1]} in the other"
                )
            parts.setdefault((one.name, one.axis), []).append((i, one, two))
    found: dict[str, list[Moves]] = {}
    for (name, _), on in parts.items():
        if not any(i in maps for i, _, _ in on):
            continue
        # Groups that overlap with one that is carried over (heads, and their dimensions) must stay as they are.
        mine = [each for each in on if each[0] in maps]
        used = {int(k) for _, one, _ in mine for k in one.index.flatten()}
        if len(used) < sum(one.index.numel() for _, one, _ in mine):
            raise TransferError(f"{whose}: of the groups of {name!r} two that overlap are to be carried over")
        left = [each for each in on if each[0] not in maps and not used & set(each[1].index.flatten().tolist())]
        first, second = on[0][1], on[0][2]
        matrices = {i: (reads if one.reads else maps).get(i) for i, one, _ in on}
        moved = tuple((one.index, two.index, matrices[i]) for i, one, two in (*mine, *left))
        if length_of(first) != length_of(second) and sum(old.numel() for old, _, _ in moved) != length_of(first):
            raise TransferError(f"{whose}: axis {first.axis} of {name!r} changes, and some of it is in no group")
        found.setdefault(name, []).append(Moves(first, second, moved))
    return found


def carried(x: Tensor, on: Sequence[Moves]) -> Tensor:
    """Carry a tensor over, axis by axis."""
    dtype = x.dtype
    x = x.to(wide(x))
    for move in on:
        rows = x.movedim(move.old.axis, 0)
        size = length_of(move.new)
        taken_by = torch.zeros(rows.shape[0], dtype=torch.bool, device=x.device)
        new = x.new_zeros(size, *rows.shape[1:])
        for old, there, matrix in move.parts:
            of_group = rows[old.flatten().to(x.device)].reshape(*old.shape, -1)
            if matrix is not None:
                of_group = torch.einsum("ji,ikr->jkr", matrix.to(device=x.device, dtype=x.dtype), of_group)
            values = of_group.reshape(there.numel(), *rows.shape[1:])
            new = new.index_add(0, there.flatten().to(x.device), values)
            taken_by = taken_by.index_fill(0, old.flatten().to(x.device), True)
        if size == rows.shape[0]:  # entries of no group stay where they are
            new = new + torch.where(taken_by.reshape(-1, *(1,) * (rows.ndim - 1)), torch.zeros_like(rows), rows)
        x = new.movedim(0, move.old.axis)
    return x.to(dtype)
