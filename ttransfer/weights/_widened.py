"""Where more channels go in an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ttransfer._errors import TransferError
from ttransfer.weights._groups import Axis, Group, Wanted, length_of, numbered

__all__ = ["Place", "Wider", "widened"]


class Place(NamedTuple):
    """What is at one place of a wider axis: entry `entry` of channel `channel` of a group, or an old entry.

    Attributes:
        group: number of the group; -1 for an old entry, which is of no group.
        channel: of the wider group.
        entry: which of the channel's entries in this axis, in ascending order; the old place for an old entry.
    """

    group: int
    channel: int
    entry: int


class Wider(NamedTuple):
    """A wider axis of a tensor.

    Attributes:
        axis: one of the groups' axes that are this one.
        parts: group's number -> its axis and its new number of channels.
        places: of the new axis.
    """

    axis: Axis
    parts: dict[int, tuple[Axis, int]]
    places: tuple[Place, ...]

    def told(self) -> str:
        counts = ", ".join(f"{len(axis.index)} -> {width}" for axis, width in self.parts.values())
        return f"axis {self.axis.axis}: channels {counts}"


def widened(whose: str, groups: Sequence[Group], widths: Wanted[int]) -> dict[str, list[Wider]]:
    """Tensor -> its axes as they are for groups of more channels.

    New channels come after the last in every run of the group's channels: at the end of an axis that they have for
    themselves, at the end of each part of queries, keys and values, after each position of a flattened map.

    Raises:
        TransferError: for a group that there is not, a fixed one, one that is not removable, fewer channels than
            there are, groups that overlap, or channels in an axis in no regular order.
    """
    parts: dict[tuple[str, int], dict[int, tuple[Axis, int]]] = {}
    for number, width in numbered(whose, groups, widths).items():
        group = groups[number]
        if not group.removable:
            raise TransferError(f"{whose}: group {number}: its channels cannot grow alone")
        if width < group.size:
            raise TransferError(f"{whose}: group {number} has {group.size} channels, got {width} to grow to")
        for axis in group.axes:
            parts.setdefault((axis.name, axis.axis), {})[number] = axis, width
    found: dict[str, list[Wider]] = {}
    for (name, _), some in sorted(parts.items()):
        axis = next(iter(some.values()))[0]
        found.setdefault(name, []).append(Wider(axis, some, tuple(_places(whose, some))))
    return found


def _places(whose: str, parts: Mapping[int, tuple[Axis, int]]) -> list[Place]:
    axis = next(iter(parts.values()))[0]
    after: dict[int, list[Place]] = {}
    owner: dict[int, Place] = {}
    for number, (one, width) in parts.items():
        index = one.index.sort(1).values.tolist()
        for channel, row in enumerate(index):
            for entry, at in enumerate(row):
                if at in owner:
                    raise TransferError(
                        f"{whose}: groups overlap in {axis.name!r}, as heads and their dimensions do; grow one, and "
                        "find the groups of the result"
                    )
                owner[at] = Place(number, channel, entry)
        start = 0
        for size in _runs(whose, one, index):
            more = [Place(number, c, start + i) for c in range(len(index), width) for i in range(size)]
            after[index[-1][start + size - 1]] = more
            start += size
    places: list[Place] = []
    for at in range(length_of(axis)):
        places += [owner.get(at, Place(-1, -1, at)), *after.get(at, [])]
    return places


def _runs(whose: str, axis: Axis, index: list[list[int]]) -> list[int]:
    """The runs in which all channels follow each other: how many entries each has in a run."""
    left, sizes = [0] * len(index), []
    order = sorted((at, channel) for channel, row in enumerate(index) for at in row)
    where = 0
    while where < len(order):
        size = 1
        while where + size < len(order) and order[where + size][1] == order[where][1] and len(index) > 1:
            size += 1
        if len(index) == 1:
            size = len(index[0])
        run = [channel for _, channel in order[where : where + size * len(index)]]
        if run != [channel for channel in range(len(index)) for _ in range(size)]:
            raise TransferError(f"{whose}: axis {axis.axis} of {axis.name!r} has channels in no order to add more to")
        sizes.append(size)
        where += len(run)
        left = [n + size for n in left]
    return sizes
