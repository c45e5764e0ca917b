"""Wider networks that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.channel_nets import IMAGE, NETS, cnn, moved, resnet, vit, with_state
from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import channel_groups, net2wider, transfer

NET = cnn()
GROUPS = channel_groups(NET, IMAGE)
WIDE = cnn(1, 9, 11)
WIDTHS = {"conv1.weight": 9, "conv2.weight": 11}

TRIALS = tuple(
    weight_map_trial(
        net2wider(GROUPS, WIDTHS, noise=noise),
        NET.state_dict(),
        WIDE.state_dict(),
        verbatim=False,
        examples=4,
        name=name,
    )
    for noise, name in ((0.0, "net2wider"), (0.1, "net2wider with noise"))
)


@parametrize_with_checks(TRIALS)
def test_laws(check) -> None:
    check()


def test_the_function_stays() -> None:
    plan = transfer(NET.state_dict(), WIDE, net2wider(GROUPS, WIDTHS, seed=3))
    torch.testing.assert_close(WIDE(IMAGE), NET(IMAGE), rtol=1e-9, atol=1e-9)
    assert plan.made["hidden.weight"].how == "axis 1: channels 8 -> 11"
    assert plan.made["conv2.weight"].how == "axis 0: channels 8 -> 11; axis 1: channels 6 -> 9"


def test_by_hand() -> None:
    src = NET.state_dict()
    new = net2wider(GROUPS, {"conv1.weight": 9}, seed=3).apply(src, {})
    origin = [next(c for c in range(6) if torch.equal(row, src["conv1.weight"][c])) for row in new["conv1.weight"]]
    assert origin[:6] == list(range(6))
    counts = torch.tensor([origin.count(c) for c in origin]).double()
    assert torch.equal(new["bn1.running_mean"], src["bn1.running_mean"][origin])
    torch.testing.assert_close(
        new["conv2.weight"], src["conv2.weight"][:, origin] / counts[:, None, None], rtol=0, atol=0
    )
    assert new["head.weight"] is src["head.weight"]


@pytest.mark.parametrize(
    ("make", "grow"),
    [
        (resnet, lambda g: g.size + 5),  # residuals, depthwise, squeeze and excitation
        (lambda: moved(NETS["dense"][0]()), lambda g: g.size + 2),  # concatenation, gates
        (vit, lambda g: 2 * g.size),  # under layer norms, to multiples; heads
    ],
)
def test_every_group_that_can_grow(make: Callable[[], nn.Module], grow: Callable) -> None:
    torch.manual_seed(0)
    net = make()
    groups = channel_groups(net, IMAGE)
    free = {i: grow(g) for i, g in enumerate(groups) if g.removable and "scaled_dot_product_attention" not in g.mixed}
    # Of what overlaps in attention, the heads alone.
    for i in [i for i in free if groups[i].axes[0].name.endswith("qkv.weight") and groups[i].size != 3]:
        del free[i]
    assert len(free) >= 3
    wide = with_state(net, net2wider(groups, free, seed=1).apply(net.state_dict(), {}))
    for block in getattr(wide, "blocks", ()):
        block.heads = 2 * block.heads
    torch.testing.assert_close(wide(IMAGE), net(IMAGE), rtol=1e-9, atol=1e-9)


def test_dimensions_of_values_may_grow() -> None:
    net = vit()
    groups = channel_groups(net, IMAGE)
    (number,) = (
        i
        for i, g in enumerate(groups)
        if g.removable and g.axes[0].index.shape == (4, 3) and "blocks.0" in g.axes[0].name
    )
    new = net2wider(groups, {number: 6}).apply(net.state_dict(), {})
    assert new["blocks.0.qkv.weight"].shape == (4 * 3 * 2 + 6 * 3, 12)
    assert new["blocks.0.proj.weight"].shape == (12, 18)
    # Values are 6 wide, and queries and keys 4: written out.
    x = torch.randn(2, 5, 12, dtype=torch.float64)

    def attend(weight, bias, proj, width):
        q, k, v = (x @ weight.T + bias).split([12, 12, 3 * width], -1)
        q, k, v = (y.unflatten(-1, (3, -1)).transpose(1, 2) for y in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) @ proj.T

    name = "blocks.0.{}".format
    src = net.state_dict()
    old, there = (
        attend(state[name("qkv.weight")], state[name("qkv.bias")], state[name("proj.weight")], width)
        for state, width in ((src, 4), (new, 6))
    )
    torch.testing.assert_close(there, old, rtol=1e-9, atol=1e-9)


def test_noise_breaks_the_tie_a_little() -> None:
    plain, noisy = (net2wider(GROUPS, WIDTHS, seed=3, noise=n).apply(NET.state_dict(), {}) for n in (0.0, 1e-3))
    differs = {name: (noisy[name] != x) for name, x in plain.items()}
    assert {name for name, d in differs.items() if d.any()} == {"conv1.weight", "conv2.weight"}
    assert differs["conv1.weight"][6:].all()
    assert not differs["conv1.weight"][:6].any()
    spread = (noisy["conv1.weight"] / plain["conv1.weight"] - 1)[6:].std()
    assert 0.7e-3 < float(spread) < 1.3e-3
    again = net2wider(GROUPS, WIDTHS, seed=3, noise=1e-3).apply(NET.state_dict(), {})
    assert all(torch.equal(again[name], x) for name, x in noisy.items())
    other = net2wider(GROUPS, WIDTHS, seed=4).apply(NET.state_dict(), {})
    assert not torch.equal(other["conv2.weight"], plain["conv2.weight"])


def test_mistakes_are_named() -> None:
    groups = channel_groups(vit(), IMAGE)
    keys = next(i for i, g in enumerate(groups) if "scaled_dot_product_attention" in g.mixed and g.removable)
    with pytest.raises(
        TransferError, match=f"net2wider: group {keys} is summed over in 'scaled_dot_product_attention'"
    ):
        net2wider(groups, {keys: 8})
    with pytest.raises(
        TransferError, match="group 0 is summed over in 'layer_norm', where all its 12 channels must have"
    ):
        net2wider(groups, {0: 18})
    make, x = NETS["torch"]
    tied = channel_groups(make(), x)
    number = next(i for i, g in enumerate(tied) if g.size == 8)
    with pytest.raises(TransferError, match=r"\"'tokens.weight', shared by two layers\", where copies would show"):
        net2wider(tied, {number: 16})


@pytest.mark.parametrize("width", [8.5, 9.0, True, None, torch.tensor(9)])
def test_a_width_is_a_whole_number(width: Any) -> None:
    with pytest.raises(TransferError, match=r"net2wider: group \d+ has 6 channels, and is to have .*; want an int"):
        net2wider(GROUPS, {"conv1.weight": width})
