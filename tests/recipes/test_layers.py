"""The layers of a net, in order."""

from __future__ import annotations

import re

import pytest
import timm
from torch import nn

from ttransfer._errors import TransferError
from ttransfer.core._tree import matches
from ttransfer.recipes import last, layers
from ttransfer_ext.timm import layer_groups


def test_a_residual_net() -> None:
    net = timm.create_model("resnet10t", num_classes=3)
    found = layers(net)
    assert list(found) == ["conv1", "bn1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "fc"]
    assert [name for own in found.values() for name in own] == [name for name, _ in net.named_parameters()]


def test_a_vision_transformer() -> None:
    net = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2)
    found = layers(net)
    assert list(found) == ["patch_embed", "blocks.0", "blocks.1", "norm", "head"]
    assert found["patch_embed"][:2] == ("cls_token", "pos_embed")
    assert {name for own in found.values() for name in own} == {name for name, _ in net.named_parameters()}


def test_what_timm_counts_together_is_written_as_groups() -> None:
    net = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2)
    groups = {
        "stem": r"cls_token|pos_embed|patch_embed\..*",
        "blocks.0": r"blocks\.0\..*",
        "blocks.1": r"(blocks\.1|norm)\..*",
        "head": r"head\..*",
    }
    assert layers(net, groups) == layer_groups(net)
    assert len(layers(net)) == len(layer_groups(net)) + 1


def test_groups_of_ones_own() -> None:
    net = timm.create_model("resnet10t", num_classes=3)
    found = layers(net, {"stem": r"(conv1|bn1)\..*", "body": r"layer\d.*", "head": ".*"})
    names = [name for name, _ in net.named_parameters()]
    for own, pattern in zip(found.values(), (r"(conv1|bn1)\..*", r"layer\d.*", "fc.*"), strict=True):
        assert list(own) == [name for name in names if matches(pattern, name)]
    assert list(layers(net, [r"(conv|bn|layer).*", "fc.*"])) == [r"(conv|bn|layer).*", "fc.*"]


def test_the_last_of_them() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    pattern = last(layers(net))
    assert [name for name, _ in net.named_parameters() if re.fullmatch(pattern, name)] == ["2.weight", "2.bias"]
    assert re.fullmatch(last(layers(net), 2), "0.weight")


def test_mistakes_are_named() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(TransferError, match=r"parameter '1.weight' is in no group"):
        layers(net, ["0.*"])
    with pytest.raises(TransferError, match="group 'head' takes no parameter"):
        layers(net, {"all": ".*", "head": "1.*"})
    with pytest.raises(TransferError, match="ReLU has no parameters"):
        layers(nn.ReLU())
    with pytest.raises(TransferError, match="wanted from 1 to 2 layers, got 3; there are 0, 1"):
        last(layers(net), 3)
