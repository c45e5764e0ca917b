"""Where growth matrices start."""

from __future__ import annotations

import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.weights import Axis, Group, interlace_layers, ligo_start, stack_layers

ROWS = torch.arange(3)[:, None]
GROUPS = [
    Group((Axis("a", 0, ROWS), Axis("b", 1, ROWS, reads=True))),
    Group((Axis("b", 0, ROWS),), mixed=("layer_norm",)),
    Group((Axis("c", 0, ROWS),), fixed=True),
]


def test_copies() -> None:
    start = ligo_start(GROUPS, {"a": 7, 1: 6}, seed=2)
    assert list(start) == ["width0", "into0", "width1", "into1"]
    wide, into = start["width0"], start["into0"]
    assert torch.equal(wide[:3], torch.eye(3))
    assert wide.sum(1).tolist() == [1.0] * 7
    assert set(wide.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(into, wide / wide.sum(0))
    # Under a layer norm as many of each.
    assert start["width1"].argmax(1).tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(ligo_start(GROUPS, {0: 7}, seed=2)["width0"], wide)
    assert any(not torch.equal(ligo_start(GROUPS, {0: 7}, seed=s)["width0"], wide) for s in (3, 4))


def test_noise_is_where_there_are_zeros_in_new_rows() -> None:
    plain, noisy = (ligo_start(GROUPS, {0: 7}, depths=[stack_layers(2, 4)], noise=n) for n in (0.0, 0.03))
    by = noisy["width0"] - plain["width0"]
    assert not by[:3].any()
    assert bool((by[3:] >= 0).all())
    assert 0.02 < float(by.max()) < 0.03
    assert bool((by[3:][plain["width0"][3:] == 1] == 0).all())
    torch.testing.assert_close(noisy["depth0"].sum(1), torch.ones(4))
    assert not torch.equal(noisy["depth0"], plain["depth0"])
    assert ligo_start(GROUPS, {0: 7}, dtype=torch.float64, noise=0.1)["into0"].dtype == torch.float64


@pytest.mark.parametrize(("old", "new"), [(1, 3), (2, 4), (2, 5), (3, 6), (4, 4), (6, 12)])
def test_layers_over_and_over_or_each_in_a_row(old: int, new: int) -> None:
    assert stack_layers(old, new).argmax(1).tolist() == [j % old for j in range(new)]
    row = interlace_layers(old, new).argmax(1).tolist()
    assert row == sorted(row)
    assert set(row) == set(range(old))
    if new == 2 * old:
        assert row == [j // 2 for j in range(new)]  # as in the authors' code
    assert stack_layers(old, new).shape == interlace_layers(old, new).shape == (new, old)


def test_mistakes_are_named() -> None:
    with pytest.raises(TransferError, match="ligo_start: group 0 has 3 channels, got 2 to grow to"):
        ligo_start(GROUPS, {0: 2})
    with pytest.raises(TransferError, match=r"ligo_start: group 2 .* is fixed"):
        ligo_start(GROUPS, {"c": 4})
