"""Where more channels go."""

from __future__ import annotations

import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.weights import Axis, Group
from ttransfer.weights._widened import widened


def written(index: torch.Tensor, width: int, length: int = 0) -> str:
    """The wider axis: a letter for each channel, a dot for what is of no group."""
    (wider,) = widened("grow", [Group((Axis("w", 0, index, length),))], {0: width})["w"]
    return "".join("." if place.group < 0 else "abcdef"[place.channel] for place in wider.places)


@pytest.mark.parametrize(
    ("index", "length", "wanted"),
    [
        ([[0], [1]], 0, "abcd"),
        ([[0, 1], [2, 3]], 0, "aabbccdd"),  # a flattened map, channels first
        ([[0, 2, 4], [1, 3, 5]], 0, "abcdabcdabcd"),  # channels last; or queries, keys and values
        ([[1], [2]], 5, ".abcd.."),  # one part of what was concatenated
        ([[0, 1, 5], [2, 3, 6]], 7, "aabbccdd.abcd"),  # parts of different sizes
        ([[0, 3], [1, 2]], 0, None),
        ([[1], [0]], 0, None),
    ],
)
def test_new_channels_come_after_the_last(index: list[list[int]], length: int, wanted: str | None) -> None:
    if wanted is None:
        with pytest.raises(TransferError, match="grow: axis 0 of 'w' has channels in no order to add more to"):
            written(torch.tensor(index), 4, length)
    else:
        assert written(torch.tensor(index), 4, length) == wanted


def test_one_channel_and_none_more() -> None:
    assert written(torch.tensor([[0, 1]]), 3) == "aabbcc"
    assert written(torch.tensor([[0], [1]]), 2) == "ab"


def test_groups_side_by_side() -> None:
    groups = [Group((Axis("w", 1, torch.tensor([[0], [1]]), 4),)), Group((Axis("w", 1, torch.tensor([[2], [3]]), 4),))]
    (wider,) = widened("grow", groups, {0: 3, 1: 3})["w"]
    assert [(place.group, place.channel) for place in wider.places] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert wider.told() == "axis 1: channels 2 -> 3, 2 -> 3"


def test_mistakes_are_named() -> None:
    rows = torch.arange(2)[:, None]
    groups = [Group((Axis("w", 0, rows),)), Group((Axis("w", 0, rows),)), Group((Axis("v", 0, rows),), removable=False)]
    with pytest.raises(TransferError, match="grow: groups overlap in 'w', as heads and their dimensions do; grow one"):
        widened("grow", groups, {0: 3, 1: 3})
    with pytest.raises(TransferError, match="grow: group 0 has 2 channels, got 1 to grow to"):
        widened("grow", groups, {0: 1})
    with pytest.raises(TransferError, match="grow: group 2: its channels cannot grow alone"):
        widened("grow", groups, {2: 4})
