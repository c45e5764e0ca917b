"""Git re-basin: the permutation of channels that brings one net's weights nearest to another's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.weights._groups import Axis, Group
from ttransfer.weights._merging import real, statistic
from ttransfer.weights._routes import Tensors

__all__ = ["assignment", "both_of", "entries_of", "free_of", "reordered", "weight_matching", "weights_of"]


def weight_matching(
    a: Tensors, b: Tensors, groups: Sequence[Group], *, seed: int = 0, sweeps: int = 100
) -> dict[int, Tensor]:
    r"""Find which channel of `b` plays the part of each channel of `a`, by weights alone.

    .. math:: \max_P\; \sum_w \langle w_a,\, P(w_b) \rangle

    by coordinate descent: one group of channels at a time, in random order, is a linear assignment problem, solved
    exactly, until none gains. For nets with residual connections and for the order this is a local optimum; try seeds.
    What batch norm has counted does not take part: reset it afterwards by `tt.weights.batch_statistics`.

    Args:
        a: parameters of the net that stays.
        b: those of the net to permute, of equal names and shapes.
        groups: of `tt.weights.channel_groups`; those that are fixed stay as they are. Of groups that overlap, as heads
            and their dimensions do, the first is matched, and the others stay.
        seed: of the order.
        sweeps: at most so many times through all groups.

    Returns:
        Index of each free group in `groups` -> (channels,): the channel of `b` that comes to each place. For
        `tt.weights.permute_channels`, which then brings `b` next to `a`.

    Raises:
        TransferError: if a tensor that a group names is not there, differs in shape or is not finite, or scipy is not
            installed.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> groups = tt.weights.channel_groups(net, torch.ones(1, 2))
        >>> a = net.state_dict()
        >>> free = next(i for i, group in enumerate(groups) if not group.fixed)
        >>> b = tt.weights.permute_channels(groups, {free: [2, 0, 1]}).apply(a, {})
        >>> tt.weights.weight_matching(a, b, groups)[free]
        tensor([1, 2, 0])

    References:
        Samuel K. Ainsworth, Jonathan Hayase, Siddhartha Srinivasa. Git Re-Basin: Merging Models modulo Permutation
        Symmetries. 2023.
    """
    free = free_of(groups)
    here, there = both_of("weight_matching", a, b, groups)
    found = {i: torch.arange(groups[i].size) for i in free}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(sweeps):
        gained = False
        for k in torch.randperm(len(free), generator=generator).tolist():
            group = groups[free[k]]
            alike = torch.zeros(group.size, group.size, dtype=torch.float64)
            for axis in group.axes:
                if axis.name in here:
                    alike += entries_of(here[axis.name], axis) @ entries_of(there[axis.name], axis).mT
            best = assignment("weight_matching", alike)
            now, then = alike.diagonal().sum(), alike.gather(1, best[:, None]).sum()
            if then > now + 1e-12 * alike.abs().sum() / len(alike):
                gained = True
                found[free[k]] = found[free[k]][best]
                for axis in group.axes:
                    if axis.name in there:
                        there[axis.name] = reordered(there[axis.name], axis, best)
        if not gained:
            break
    return found


def free_of(groups: Sequence[Group]) -> list[int]:
    """The groups that can be matched: not fixed, and of those that overlap (heads, and their dimensions) the first."""
    free: list[int] = []
    taken: dict[tuple[str, int], set[int]] = {}
    for i, group in enumerate(groups):
        entries = {(axis.name, axis.axis): set(axis.index.flatten().tolist()) for axis in group.axes}
        if not group.fixed and not any(taken.get(key, set()) & some for key, some in entries.items()):
            free.append(i)
            for key, some in entries.items():
                taken.setdefault(key, set()).update(some)
    return free


def both_of(whose: str, a: Tensors, b: Tensors, groups: Sequence[Group]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of two nets that groups name.

    Raises:
        TransferError: if one of them is not there, or differs in shape.
    """
    here, there = weights_of(whose, a, groups), weights_of(whose, b, groups)
    for name, x in here.items():
        if there[name].shape != x.shape:
            raise TransferError(f"{whose}: {name!r} is {shown(x)} in the one and {shown(there[name])} in the other")
    return here, there


def weights_of(whose: str, tensors: Tensors, groups: Sequence[Group]) -> dict[str, Tensor]:
    """The weights that groups name, in float64 on the CPU, without what batch norm has counted.

    Raises:
        TransferError: if one of them is not there, or not finite.
    """
    found: dict[str, Tensor] = {}
    for group in groups:
        for axis in group.axes:
            if axis.name not in tensors:
                raise TransferError(f"{whose}: a group names {axis.name!r}, which is not there")
            x = tensors[axis.name]
            if real(x) and not statistic(axis.name):
                found[axis.name] = x.detach().double().cpu()
    for name, x in found.items():
        if not x.isfinite().all():
            raise TransferError(
                f"{whose}: {name!r} {shown(tensors[name])} has NaN or infinite entries, near to nothing"
            )
    return found


def entries_of(x: Tensor, axis: Axis) -> Tensor:
    """What a tensor has for each channel: (channels, entries)."""
    index = axis.index.to(x.device)
    return x.index_select(axis.axis, index.flatten()).movedim(axis.axis, 0).reshape(len(index), -1)


def reordered(x: Tensor, axis: Axis, order: Tensor) -> Tensor:
    """A tensor whose channels come in another order."""
    index = axis.index.to(x.device)
    where = torch.arange(x.shape[axis.axis], device=x.device)
    where = where.scatter(0, index.flatten(), index[order.to(x.device)].flatten())
    return x.index_select(axis.axis, where)


def assignment(whose: str, gain: Tensor) -> Tensor:
    """The one-to-one choice of a column for each row with the largest sum."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise TransferError(f"{whose}: assignments are solved by scipy: pip install scipy") from error
    return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
