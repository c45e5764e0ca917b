"""Norms of channels, and the largest."""

from __future__ import annotations

import pytest
import torch

from tests.support.channel_nets import IMAGE, cnn
from ttransfer._errors import TransferError
from ttransfer.weights import Axis, Group, channel_groups, channel_importance, most_important

NET = cnn()
GROUPS = channel_groups(NET, IMAGE)
SECOND = next(g for g in GROUPS if g.axes[0].name == "conv2.weight")


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_norm_of_everything_that_a_channel_has(p: float) -> None:
    src = NET.state_dict()
    found = channel_importance(src, SECOND, p=p)
    for c in range(8):
        parts = [src["conv2.weight"][c], src["bn2.weight"][c], src["bn2.bias"][c]]
        parts.append(src["hidden.weight"][:, 4 * c : 4 * c + 4])
        wanted = sum(float((x.abs() ** p).sum()) for x in parts) ** (1 / p)
        assert abs(float(found[c]) - wanted) < 1e-9


def test_it_follows_the_channels_and_is_differentiable() -> None:
    src = {name: x.clone() for name, x in NET.state_dict().items()}
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    for name in ("conv2.weight", "bn2.weight", "bn2.bias"):
        src[name] = src[name][order]
    src["hidden.weight"] = src["hidden.weight"].unflatten(1, (8, 4))[:, order].flatten(1)
    torch.testing.assert_close(channel_importance(src, SECOND), channel_importance(NET.state_dict(), SECOND)[order])
    w = src["conv2.weight"].requires_grad_()
    channel_importance({**src, "conv2.weight": w}, SECOND).sum().backward()
    assert w.grad is not None
    assert bool((w.grad != 0).all())


@pytest.mark.parametrize(
    ("keep", "wanted"), [(1, [3]), (2, [1, 3]), (3, [0, 1, 3]), (0.5, [1, 3]), (0.01, [3]), (1.0, [0, 1, 2, 3])]
)
def test_the_largest_in_order(keep: float, wanted: list[int]) -> None:
    assert most_important(torch.tensor([2.0, 3.0, 2.0, 5.0]), keep).tolist() == wanted


def test_mistakes_are_named() -> None:
    for keep in (0, 5, 1.5):
        with pytest.raises(TransferError, match=f"most_important: of 4 channels {keep} cannot be kept"):
            most_important(torch.ones(4), keep)
    with pytest.raises(TransferError, match=r"channel_importance: the source has no 'conv2\.weight'"):
        channel_importance({}, SECOND)
    with pytest.raises(TransferError, match="the group has no parameters"):
        channel_importance(
            {"bn.running_mean": torch.ones(2)}, Group((Axis("bn.running_mean", 0, torch.arange(2)[:, None]),))
        )
