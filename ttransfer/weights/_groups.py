"""Which entries of which tensors are one channel, and maps that put the channels in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._routes import Route, Routes, Tensors, routed

__all__ = ["Axis", "Group", "Wanted", "permute_channels"]

V = TypeVar("V")
# For each group, called by its number or by a tensor that makes its channels: a value.
Wanted = Mapping[int, V] | Mapping[str, V] | Mapping[int | str, V]


class Axis(NamedTuple):
    """Where the channels of a group are in one axis of one tensor.

    Attributes:
        name: the tensor.
        axis: which of its axes.
        index: int64 (channels, k): the entries that belong to each channel, in the same order for all.
        length: size of the axis; 0 is the number of entries in `index`, for an axis that has no others.
        reads: whether the tensor reads the channels here, as a weight does with its inputs, rather than makes them.

    Example:
        >>> flattened = torch.arange(12).reshape(3, 4)  # a linear layer after 3 channels of 2 by 2
        >>> Axis("fc.weight", 1, flattened, reads=True).index[1].tolist()
        [4, 5, 6, 7]
    """

    name: str
    axis: int
    index: Tensor
    length: int = 0
    reads: bool = False


class Group(NamedTuple):
    """Channels that are interchangeable: the same order in all axes leaves the network's function as it is.

    Attributes:
        axes: where they are.
        fixed: whether they are channels of the network's input or output, or bound to their places by the network
            itself: these must stay where they are.
        removable: whether some can be taken away; False for what can only change places, such as the dimensions of
            one attention head of several.
        mixed: names of the operations that mix them without a weight, such as "layer_norm", so that the number of
            channels shows in the result.

    Example:
        >>> hidden = torch.arange(8)[:, None]
        >>> Group((Axis("up.weight", 0, hidden), Axis("down.weight", 1, hidden, reads=True))).size
        8
    """

    axes: tuple[Axis, ...]
    fixed: bool = False
    removable: bool = True
    mixed: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of channels."""
        return int(self.axes[0].index.shape[0])


def length_of(axis: Axis) -> int:
    """The size of the axis."""
    return axis.length or axis.index.numel()


def numbered(whose: str, groups: Sequence[Group], wanted: Wanted[V]) -> dict[int, V]:
    """What is wanted of groups, by their numbers, in the order of the groups.

    Raises:
        TransferError: for a group that there is not, a tensor that makes the channels of several groups or of none, a
            group given twice, or one that is fixed.
    """
    found: dict[int, V] = {}
    for which, value in wanted.items():
        number: Any = _number(whose, groups, which) if isinstance(which, str) else which
        if not is_whole(number) or not 0 <= number < len(groups):
            raise TransferError(f"{whose}: there is no group {number!r} among {len(groups)}")
        if groups[number].fixed:
            raise TransferError(
                f"{whose}: group {number} ({told(groups[number])}) is fixed: its channels must stay where they are"
            )
        if number in found:
            raise TransferError(f"{whose}: group {number} ({told(groups[number])}) is given twice")
        found[number] = value
    return {number: found[number] for number in sorted(found)}


def _number(whose: str, groups: Sequence[Group], name: str) -> int:
    makes = [i for i, group in enumerate(groups) if any(a.name == name and not a.reads for a in group.axes)]
    if len(makes) == 1:
        return makes[0]
    if not makes:
        every = {axis.name for group in groups for axis in group.axes if not axis.reads}
        raise TransferError(f"{whose}: no group has its channels made by {name!r}{nearest(name, every)}")
    some = ", ".join(
        f"{i} ({groups[i].size} channels{'' if groups[i].removable else ', not removable'})" for i in makes
    )
    raise TransferError(f"{whose}: {name!r} makes the channels of several groups: say by number which of {some}")


def told(group: Group) -> str:
    """A group in a few words."""
    first = group.axes[0]
    more = f" and {len(group.axes) - 1} more" if len(group.axes) > 1 else ""
    return f"{group.size} channels of {first.name!r} axis {first.axis}{more}"


def checked(whose: str, axis: Axis, src: Tensors) -> Tensor:
    """The tensor that an axis is of.

    Raises:
        TransferError: for a tensor that is not in the source, or not of the groups' network.
    """
    if axis.name not in src:
        raise TransferError(f"{whose}: the source has no {axis.name!r}{nearest(axis.name, src)}")
    x = src[axis.name]
    if axis.axis >= x.ndim or x.shape[axis.axis] != length_of(axis):
        raise TransferError(
            f"{whose}: {axis.name!r} is {shown(x)}, and axis {axis.axis} of the network that the groups were found in "
            f"has {length_of(axis)}"
        )
    return x


def is_whole(number: Any) -> bool:
    """Whether it is a whole number, Python's or numpy's."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def channels_of(given: Any) -> Tensor | None:
    """Numbers of channels, as (n,) int64; None for what is none, such as a mask."""
    if not isinstance(given, Tensor):
        if hasattr(given, "dtype"):  # numpy's
            given = torch.as_tensor(given, device="cpu")
        elif isinstance(given, Sequence) and all(is_whole(i) for i in cast(Sequence[Any], given)):
            given = torch.tensor([int(i) for i in cast(Sequence[Any], given)], dtype=torch.int64, device="cpu")
        else:
            return None
    whole = given.dtype in (torch.int64, torch.int32, torch.int16, torch.int8)
    return given.long() if whole and given.ndim == 1 else None


def _order(number: int, group: Group, given: Any) -> Tensor:
    """An order of a group's channels.

    Raises:
        TransferError: for what is none. In a graph and under vmap, nobody can look at the numbers of a tensor.
    """
    size = len(group.axes[0].index)  # a property is nothing that torch 2.8 can trace
    order = channels_of(given)
    if order is None or order.shape != (size,):
        got = shown(given) if order is None or isinstance(given, Tensor) else f"one of {len(order)}"
        raise TransferError(
            f"permute_channels: group {number} has {size} channels, got an order of {got}; want each of "
            f"0 to {size - 1} once, as int64"
        )
    counts: list[int] = []
    if isinstance(given, Sequence):
        counts = [int(i) for i in cast(Sequence[Any], given)]
    elif not (torch.compiler.is_compiling() or type(order) is not Tensor or is_functorch_wrapped_tensor(order)):
        counts = [] if order.is_meta else order.tolist()
    seen: set[int] = set()
    for i in counts:
        if not 0 <= i < size or i in seen:
            raise TransferError(
                f"permute_channels: group {number} has {size} channels, got an order with {i} "
                f"{'twice' if i in seen else 'in it'}: {counts[:8]}; want each of 0 to {size - 1} once"
            )
        seen.add(i)
    return order


def passed(groups: Sequence[Group], src: Tensors) -> dict[str, Route]:
    """Pass a source on, and say of tensors of no group that this is why they do not change."""
    known = {axis.name for group in groups for axis in group.axes}
    of_none = {name for name, x in src.items() if name not in known and x.is_floating_point() and x.ndim}
    return {name: Route((name,), why="of no group" if name in of_none else "") for name in src}


def permute_channels(groups: Sequence[Group], permutations: Wanted[Tensor | Sequence[int]]) -> WeightMap:
    r"""Put the channels of groups in another order, in every tensor that has them: the function stays as it is.

    .. math:: W'[\dots, i, \dots] = W[\dots, p_i, \dots]

    Args:
        groups: of the network, as `channel_groups` finds them. Where groups overlap (heads and their dimensions) they
            are permuted one after the other.
        permutations: group -> (channels,) int64: at place i comes what was at p_i. A group is called by its number, or
            by a tensor that makes its channels and those of no other group. In a graph and under vmap a tensor is
            taken at its word that it is an order.

    Returns:
        A `WeightMap` which passes on what is in none of these groups.

    Raises:
        TransferError: for a group that there is not, a fixed group, an order of another length, or one that has not
            each channel once; at use, for a source that is not of the groups' network.

    Example:
        >>> import torch, ttransfer as tt
        >>> rows = torch.arange(2)[:, None]
        >>> hidden = tt.weights.Group((tt.weights.Axis("up", 0, rows), tt.weights.Axis("down", 1, rows)))
        >>> src = {"up": torch.tensor([[1.0], [2.0]]), "down": torch.tensor([[3.0, 4.0]])}
        >>> new = tt.weights.permute_channels([hidden], {0: [1, 0]}).apply(src, {})
        >>> new["up"].tolist(), new["down"].tolist()
        ([[2.0], [1.0]], [[4.0, 3.0]])
    """
    # The order of each axis of each tensor, composed over groups, and the numbers of the groups.
    found: dict[str, dict[int, tuple[Axis, Tensor, tuple[int, ...]]]] = {}
    for number, given in numbered("permute_channels", groups, permutations).items():
        group = groups[number]
        order = _order(number, group, given)
        for axis in group.axes:
            index = axis.index.to(order.device)
            whole = torch.arange(length_of(axis), device=order.device)
            after = whole.scatter(0, index.reshape(-1), index[order].reshape(-1))
            of = found.setdefault(axis.name, {})
            _, before, numbers = of.get(axis.axis, (axis, whole, ()))
            of[axis.axis] = axis, before[after], (*numbers, number)

    def routes(src: Tensors, like: Tensors) -> Routes:
        steps: dict[str, list[tuple[int, Tensor]]] = {}
        words: dict[str, list[str]] = {}
        for name in sorted(found):
            for at in sorted(found[name]):
                axis, order, numbers = found[name][at]
                checked("permute_channels", axis, src)
                steps.setdefault(name, []).append((at, order))
                which = ", ".join(map(str, numbers))
                words.setdefault(name, []).append(f"axis {at} in the order of group{'s' * (len(numbers) > 1)} {which}")
        made = passed(groups, src)
        made |= {name: Route((name,), _ordered(steps[name]), "; ".join(words[name])) for name in steps}
        return Routes(made)

    return routed(routes)


def _ordered(steps: Sequence[tuple[int, Tensor]]) -> Callable[[Tensor], Tensor]:
    def make(x: Tensor) -> Tensor:
        for axis, order in steps:
            x = x.index_select(axis, order.to(x.device))
        return x

    return make
