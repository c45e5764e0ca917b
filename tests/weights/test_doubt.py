"""An order that a shape contradicts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ttransfer._errors import TransferError
from ttransfer.core._types import Params
from ttransfer.weights import match, transfer
from ttransfer.weights._doubt import Crossing, crossings, in_doubt


def block(*names: str) -> nn.Module:
    """A residual block whose main way and shortcut are of one width."""
    kinds = {"main": nn.Conv2d(4, 6, 3, bias=False), "short": nn.Conv2d(4, 6, 1, bias=False)}
    net = nn.Module()
    for name in names:
        net.add_module(
            name, kinds.get(name.split("_")[0], nn.BatchNorm2d(6)) if "bn" not in name else nn.BatchNorm2d(6)
        )
    return net


def named(net: nn.Module, **names: str) -> nn.Module:
    new = nn.Module()
    for name, child in net.named_children():
        new.add_module(names[name], child)
    return new


def test_a_shortcut_that_is_defined_first_is_not_taken_for_the_main_way() -> None:
    first = block("short", "short_bn", "main", "main_bn")
    last = named(
        block("main", "main_bn", "short", "short_bn"), main="conv", main_bn="bn", short="down", short_bn="down_bn"
    )
    src, like = (nn.Sequential(nn.Linear(3, 4), one).state_dict() for one in (first, last))
    plan = match().plan(src, like)
    assert plan.made["1.conv.weight"].sources == ("1.main.weight",)
    assert {name.rpartition(".")[0] for name in plan.ambiguous} == {"1.bn", "1.down_bn"}
    assert plan.ambiguous["1.bn.weight"] == ("1.short_bn.weight", "1.main_bn.weight")
    with pytest.raises(TransferError, match=r"the order is in doubt, for '1\.\w+\.weight' from .* of 1\.\*, or more"):
        transfer(src, nn.Sequential(nn.Linear(3, 4), last))


def tensors(**shapes: tuple[int, ...]) -> Params:
    return {f"{name.replace('_', '.')}.weight": torch.zeros(shape) for name, shape in shapes.items()}


def test_what_is_the_only_one_in_its_part_is_sure() -> None:
    """A layer that merges patches, its norm before its projection here and behind it there, as in two Swins."""
    proj, norm = nn.Linear(16, 8, bias=False), nn.LayerNorm(16)
    merge, down = nn.Module(), nn.Module()
    for name, child in (("proj", proj), ("norm", norm)):
        merge.add_module(name, child)
    for name, child in (("scale", norm), ("map", proj)):
        down.add_module(name, child)
    src, like = (nn.Sequential(nn.Linear(3, 4), one, nn.LayerNorm(16)).state_dict() for one in (merge, down))
    made = match().plan(src, like).made
    assert {name: one.sources[0] for name, one in made.items() if name[0] == "1"} == {
        "1.scale.weight": "1.norm.weight",
        "1.scale.bias": "1.norm.bias",
        "1.map.weight": "1.proj.weight",
    }


def test_crossings_and_their_parts() -> None:
    src, like = tensors(a_b_x=(1,), a_b_y=(2,), a_z=(1,)), tensors(c_y=(2,), c_x=(1,), d=(1,))
    by_shape, by_order = {"c.y.weight": "a.b.y.weight"}, {"c.x.weight": "a.b.x.weight", "d.weight": "a.z.weight"}
    found = crossings(by_order, by_shape, src, like)
    assert found == [Crossing("c.y.weight", "c.x.weight", "a.b", "c")]
    assert in_doubt(found, by_order, (), src, like) == {}
    # In the whole of "a" there is another of this shape.
    wider = [found[0]._replace(here="a")]
    both = ("a.b.x.weight", "a.z.weight")
    assert in_doubt(wider, by_order, (), src, like) == {"c.x.weight": both, "d.weight": both}
    assert in_doubt(wider, by_order, ("a.z.weight",), src, like) == {"d.weight": ("a.b.x.weight",)}
