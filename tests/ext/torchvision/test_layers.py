"""Layers of torchvision's models are those of the same nets in timm."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import ttransfer_ext.timm as timms
from ttransfer import TransferError
from ttransfer.recipes import Layers
from ttransfer_ext.torchvision import layer_groups, model

SAME = {
    "resnet18": "resnet18",
    "wide_resnet50_2": "wide_resnet50_2",
    "vit_b_16": "vit_base_patch16_224",
    "convnext_tiny": "convnext_tiny",
    "efficientnet_b0": "efficientnet_b0",
    "mobilenet_v2": "mobilenetv2_100",
    "swin_t": "swin_tiny_patch4_window7_224",
}


def sizes(net: nn.Module, layers: Layers) -> list[Counter[int]]:
    """How large the tensors of each layer are."""
    own = dict(net.named_parameters())
    assert sorted(name for names in layers.values() for name in names) == sorted(own)
    return [Counter(own[name].numel() for name in names) for names in layers.values()]


@pytest.mark.parametrize("name", SAME)
def test_they_are_timms(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = model(name), timms.model(SAME[name])
    assert sizes(ours, layer_groups(ours)) == sizes(theirs, timms.layer_groups(theirs))


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("resnet18", ["stem", "layer1.0", "layer1.1"], ["layer4.1", "head"]),
        ("vit_b_16", ["stem", "encoder.layers.encoder_layer_0"], ["encoder.layers.encoder_layer_11", "head"]),
        ("convnext_tiny", ["stem", "features.1.0"], ["features.7.2", "head"]),
        ("efficientnet_v2_s", ["stem", "features.1.0"], ["features.6.14", "head"]),
        ("mobilenet_v3_small", ["stem", "features.1"], ["features.11", "head"]),
    ],
)
def test_titles(name: str, first: list[str], last: list[str]) -> None:
    with torch.device("meta"):
        found = list(layer_groups(model(name)))
    assert (found[: len(first)], found[-len(last) :]) == (first, last)


def test_refusals() -> None:
    with pytest.raises(TransferError, match=r"wanted one of torchvision's ResNet, .*got torch.nn.modules.linear.Lin"):
        layer_groups(nn.Linear(2, 2))
