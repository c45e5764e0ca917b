"""A checkpoint into a module: all of it or none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from ttransfer._errors import TransferError
from ttransfer.core._maps import Made, WeightMap
from ttransfer.weights import chain, drop, match, rename, transfer


def make(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def test_a_module_is_filled_and_nothing_is_shared() -> None:
    trained, net = make(), make()
    plan = transfer(trained.state_dict(), net)
    assert plan.made["0.weight"] == Made(("0.weight",))
    assert all(torch.equal(x, net.state_dict()[name]) for name, x in trained.state_dict().items())
    assert net[0].weight.data_ptr() != trained[0].weight.data_ptr()  # type: ignore[index]


def test_a_new_head_stays() -> None:
    trained, net = make(1000), make(3)
    before = net[3].weight.clone()  # type: ignore[index]
    plan = transfer(trained.state_dict(), net, match(allow="3.*"))
    assert plan.kept == ("3.weight", "3.bias")
    assert torch.equal(before, net[3].weight)  # type: ignore[index]


def test_a_meta_module_takes_the_tensors() -> None:
    src = make().state_dict()
    with torch.device("meta"):
        net = make()
    transfer(src, net)
    assert net[0].weight.data_ptr() == src["0.weight"].data_ptr()  # type: ignore[index]
    assert isinstance(net[0].weight, nn.Parameter)  # type: ignore[index]


@pytest.mark.parametrize(
    ("map", "says"),
    [
        (match(), "get nothing"),
        (rename({"0": "0"}), r"transfer: 2 of 9 target tensors get nothing\n  '3.weight': source \(5, 4\), target"),
        (drop("3.*"), r"transfer: 2 of 9 target tensors get nothing\n  '3.weight' \(3, 4\) float32: not in the source"),
        (chain(drop("3.*"), rename({"0": "00"}), match(allow="3.*|0.*|00.*")), None),
    ],
)
def test_all_or_nothing(map: WeightMap, says: str | None) -> None:
    src, net = make(5).state_dict(), make(3)
    before = copy.deepcopy(net.state_dict())
    if says is None:
        transfer(src, net, map)
        return
    with pytest.raises(TransferError, match=says):
        transfer(src, net, map)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


def test_a_map_that_does_not_keep_its_word_is_refused() -> None:
    liar = WeightMap(lambda src, like: {}, match().plan)
    with pytest.raises(TransferError, match=r"'0.weight' .* gets nothing, though the plan says that it fits"):
        transfer(make().state_dict(), make(), liar)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.h.weight = self.e.weight


def test_a_tie_is_filled_by_its_one_source() -> None:
    net = Tied()
    plan = transfer({"e.weight": torch.ones(3, 3)}, net)
    assert plan.made["h.weight"] == Made(("e.weight",), "", "tied to 'e.weight'")
    assert net.h.weight is net.e.weight
    assert net.h.weight.sum().item() == 9
    both = torch.zeros(3, 3)
    transfer({"e.weight": both, "h.weight": both.clone()}, net)
    assert net.h.weight.sum().item() == 0


def test_two_values_of_one_tensor_are_refused() -> None:
    net = Tied()
    before = net.e.weight.clone()
    with pytest.raises(
        TransferError, match=r"'e.weight' and 'h.weight' are one tensor of the module, and would get two"
    ):
        transfer({"e.weight": torch.zeros(3, 3), "h.weight": torch.ones(3, 3)}, net)
    assert torch.equal(net.e.weight, before)


@pytest.mark.parametrize(
    ("src", "says"),
    [
        (make(), "got Sequential; its weights are its state_dict"),
        ("net.pt", "got str; tt.weights.load reads a file"),
        ({"0.weight": {"nested": torch.ones(1)}}, "got dict under '0.weight'"),
    ],
)
def test_what_is_no_checkpoint_is_refused(src: object, says: str) -> None:
    with pytest.raises(TransferError, match=f"transfer: wanted a checkpoint, name -> tensor, {says}"):
        transfer(src, make())  # type: ignore[arg-type]


@pytest.mark.parametrize("once", [False, True])
def test_tied_weights_of_a_meta_module_stay_one_parameter(once: bool) -> None:
    value = torch.randn(3, 3)
    with torch.device("meta"):
        net = Tied()
    transfer({"e.weight": value} | ({} if once else {"h.weight": value.clone()}), net)
    assert net.h.weight is net.e.weight
    assert torch.equal(net.e.weight, value)
    assert len(list(net.parameters())) == 1


def test_tied_weights_that_are_nan_alike_are_equal() -> None:
    nan = torch.full((3, 3), torch.nan)
    transfer({"e.weight": nan, "h.weight": nan.clone()}, Tied())
    with pytest.raises(TransferError, match="would get two different ones"):
        transfer({"e.weight": nan, "h.weight": torch.zeros(3, 3)}, Tied())


@pytest.mark.parametrize(
    ("module", "map", "says"),
    [
        ({}, None, "wanted a module to fill, got dict"),
        (make(), match, "wanted a WeightMap, got the function match; call it"),
        (make(), match().plan({}, {}), "wanted a WeightMap, got "),
    ],
)
def test_what_is_no_module_and_no_map_is_refused(module: Any, map: Any, says: str) -> None:
    with pytest.raises(TransferError, match=f"^transfer: {says}"):
        transfer({}, module, map)
