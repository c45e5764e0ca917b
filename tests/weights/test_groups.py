"""Groups, and channels in another order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.support.channel_nets import IMAGE, cnn, vit
from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import Axis, Group, channel_groups, permute_channels

ROWS = torch.arange(3)[:, None]
PAIRS = torch.tensor([[0, 3], [1, 4], [2, 5]])
GROUPS = [
    Group((Axis("a", 0, ROWS), Axis("b", 1, PAIRS, reads=True))),
    Group((Axis("b", 0, torch.arange(2)[:, None]),), fixed=True),
    Group((Axis("b", 1, PAIRS.T, reads=True), Axis("c", 0, torch.arange(2)[:, None])), removable=False),
]
SOURCE = {"a": torch.randn(3, 2), "b": torch.randn(2, 6), "c": torch.randn(2), "d": torch.randn(2)}

TRIALS = (
    weight_map_trial(
        permute_channels(GROUPS, {0: [2, 0, 1], 2: [1, 0]}), SOURCE, SOURCE, verbatim=False, examples=4, name="permute"
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check) -> None:
    check()


def test_place_i_gets_what_was_at_p_i() -> None:
    new = permute_channels(GROUPS, {"a": torch.tensor([2, 0, 1])}).apply(SOURCE, {})
    assert torch.equal(new["a"], SOURCE["a"][[2, 0, 1]])
    assert torch.equal(new["b"], SOURCE["b"][:, [2, 0, 1, 5, 3, 4]])
    assert new["c"] is SOURCE["c"]
    assert new["d"] is SOURCE["d"]


def test_groups_that_overlap_are_permuted_one_after_the_other() -> None:
    both = permute_channels(GROUPS, {0: [2, 0, 1], 2: [1, 0]}).apply(SOURCE, {})
    one = permute_channels(GROUPS, {0: [2, 0, 1]}).apply(SOURCE, {})
    assert torch.equal(both["b"], permute_channels(GROUPS, {2: [1, 0]}).apply(one, {})["b"])


@pytest.mark.parametrize("make", [cnn, vit])
def test_back_and_forth(make) -> None:
    net: nn.Module = make()
    groups = channel_groups(net, IMAGE)
    g = torch.Generator().manual_seed(1)
    orders = {i: torch.randperm(group.size, generator=g) for i, group in enumerate(groups) if not group.fixed}
    there = permute_channels(groups, orders).apply(net.state_dict(), {})
    torch.testing.assert_close(functional_call(net, there, IMAGE), net(IMAGE), rtol=1e-9, atol=1e-9)
    for number in sorted(orders, reverse=True):
        there = permute_channels(groups, {number: orders[number].argsort()}).apply(there, {})
    assert all(torch.equal(there[name], x) for name, x in net.state_dict().items())


def test_tied_weights_stay_one() -> None:
    tied = [Group((Axis("up", 0, ROWS), Axis("down", 0, ROWS)))]
    w = torch.randn(3, 2)
    new = permute_channels(tied, {0: [1, 2, 0]}).apply({"up": w, "down": w}, {})
    assert new["up"] is new["down"]


def test_an_order_may_be_batched_by_vmap() -> None:
    orders = torch.stack([torch.tensor([0, 1, 2]), torch.tensor([2, 1, 0])])

    def permuted(order: Tensor) -> Tensor:
        return permute_channels(GROUPS, {0: order}).apply(SOURCE, {})["a"]

    assert torch.equal(torch.func.vmap(permuted)(orders), torch.stack([SOURCE["a"], SOURCE["a"].flip(0)]))


def test_an_order_may_be_a_graphs_own() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def permuted(order: Tensor) -> tuple[Tensor, Tensor]:
        both = permute_channels(GROUPS, {0: order, 2: [1, 0]}).apply(SOURCE, {})
        return both["a"], both["b"]

    order = torch.tensor([2, 0, 1])
    wanted = permute_channels(GROUPS, {0: order, 2: [1, 0]}).apply(SOURCE, {})
    torch.testing.assert_close(permuted(order), (wanted["a"], wanted["b"]))


def test_an_order_may_be_numpys_or_of_another_whole_type() -> None:
    order = torch.tensor([2, 0, 1])
    some: list[Any] = [order.numpy(), order.int(), list(order.numpy()), (2, 0, 1)]
    for each in some:
        assert torch.equal(permute_channels(GROUPS, {0: each}).apply(SOURCE, {})["a"], SOURCE["a"][order])


@pytest.mark.parametrize(
    ("permutations", "message"),
    [
        ({7: [0]}, "permute_channels: there is no group 7 among 3"),
        ({0.5: [0]}, "permute_channels: there is no group 0.5 among 3"),
        ({True: [0]}, "permute_channels: there is no group True among 3"),
        ({1: [1, 0]}, "group 1 \\(2 channels of 'b' axis 0\\) is fixed: its channels must stay where they are"),
        ({0: [1, 0]}, "group 0 has 3 channels, got an order of one of 2; want each of 0 to 2 once, as int64"),
        ({0: torch.tensor([1, 0])}, "group 0 has 3 channels, got an order of \\(2,\\) int64"),
        ({0: [0, 0, 1]}, r"group 0 has 3 channels, got an order with 0 twice: \[0, 0, 1\]; want each of 0 to 2 once"),
        ({0: torch.tensor([0, 0, 1])}, r"got an order with 0 twice: \[0, 0, 1\]"),
        ({0: [0, 1, -1]}, r"got an order with -1 in it: \[0, 1, -1\]"),
        ({0: [9, 0, 1]}, r"got an order with 9 in it: \[9, 0, 1\]"),
        ({0: [True, False, True]}, r"got an order of \[bool, bool, bool\]; want"),
        ({0: torch.tensor([True, False, True])}, r"got an order of \(3,\) bool; want"),
        ({0: [0.0, 1.0, 2.0]}, r"got an order of \[float, float, float\]; want"),
        ({0: torch.ones(3)}, r"got an order of \(3,\) float32; want"),
        ({0: 2}, r"got an order of int; want"),
        ({"b": [1, 0]}, "is fixed"),
        ({"e": [1, 0]}, "no group has its channels made by 'e'; there are: a, b, c"),
        ({0: [0, 1, 2], "a": [0, 1, 2]}, "group 0 \\(3 channels of 'a' axis 0 and 1 more\\) is given twice"),
    ],
)
def test_mistakes_are_named(permutations: dict, message: str) -> None:
    with pytest.raises(TransferError, match=message):
        permute_channels(GROUPS, permutations)


def test_a_tensor_of_several_groups_is_no_name() -> None:
    net = vit()
    with pytest.raises(TransferError, match=r"makes the channels of several groups: say by number which of \d+ \(4 ch"):
        permute_channels(channel_groups(net, IMAGE), {"blocks.0.qkv.weight": [0]})


def test_another_network_is_refused() -> None:
    shuffle = permute_channels(GROUPS, {0: [2, 0, 1]})
    with pytest.raises(TransferError, match="the source has no 'a'; there are: b, c, d"):
        shuffle.apply({k: v for k, v in SOURCE.items() if k != "a"}, {})
    with pytest.raises(TransferError, match=r"'b' is \(2, 7\) float32, and axis 1 of the network .* has 6"):
        shuffle.apply({**SOURCE, "b": torch.zeros(2, 7)}, {})


def test_a_list_is_looked_at_in_a_graph_too() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def permuted(x: Tensor) -> Tensor:
        return permute_channels(GROUPS, {0: [0, 0, 1]}).apply({**SOURCE, "a": x}, {})["a"]

    with pytest.raises(Exception, match=r"an order with 0 twice|Observed exception|TransferError"):
        permuted(SOURCE["a"])
