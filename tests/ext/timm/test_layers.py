"""Layers of timm's models: rates that fall with depth are those of timm."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

import ttransfer as tt
from ttransfer import TransferError
from ttransfer_ext.timm import layer_groups, model

NAMES = (
    "resnet18",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "deit_tiny_distilled_patch16_224",
)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return model(name, classes=3)


def timms_scales(net: nn.Module, decay: float) -> dict[str, float]:
    names = {id(p): name for name, p in net.named_parameters()}
    groups = param_groups_layer_decay(net, layer_decay=decay)
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_timms(name: str) -> None:
    net = on_meta(name)
    layers = layer_groups(net)
    assert sorted(name for own in layers.values() for name in own) == sorted(name for name, _ in net.named_parameters())
    opt = tt.recipes.layerwise(tt.optim.sgd(1.0), layers, 0.7, net="student")
    ones: dict[str, dict[str, Tensor]] = {
        "student": {name: torch.ones((), dtype=torch.float64) for name, _ in net.named_parameters()}
    }
    updates, _ = opt.update(ones, opt.init(ones), ones, tt.optim.hyper_at(opt))
    wanted = timms_scales(net, 0.7)
    assert len(set(wanted.values())) == len(layers)
    assert {name: -x.item() for name, x in updates["student"].items()} == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("resnet18", ["stem", "layer1.0", "layer1.1"], ["layer4.1", "head"], 10),
        ("vit_tiny_patch16_224", ["stem", "blocks.0"], ["blocks.11", "head"], 14),
        ("convnext_atto", ["stem", "stages.0.blocks.0"], ["stages.3.blocks.1", "head"], 14),
        ("tf_efficientnet_lite0", ["stem", "blocks.0.0", "blocks.1.0"], ["blocks.6.0", "head"], 18),
    ],
)
def test_titles(name: str, first: list[str], last: list[str], count: int) -> None:
    found = list(layer_groups(on_meta(name)))
    assert (found[: len(first)], found[-len(last) :], len(found)) == (first, last, count)


def test_stages() -> None:
    assert list(layer_groups(on_meta("resnet18"), coarse=True)) == [
        "stem",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "head",
    ]


def test_a_probe_trains_the_head() -> None:
    layers = layer_groups(on_meta("deit_tiny_distilled_patch16_224"))
    assert layers["head"] == ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
    assert tt.recipes.last(layers) == r"head\.weight|head\.bias|head_dist\.weight|head_dist\.bias"


def test_a_matcher_that_is_a_function() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)

        def group_matcher(self, coarse: bool = False) -> object:
            return lambda name: 0 if name.startswith("a") else 1

    assert layer_groups(Odd()) == {"layer0": ("a.weight", "a.bias"), "layer1": ("b.weight", "b.bias")}


def test_refusals() -> None:
    with pytest.raises(TransferError, match=r"timm.layer_groups: Linear has no group_matcher; tt.recipes.layers takes"):
        layer_groups(nn.Linear(2, 2))


def test_every_matcher_of_timm_is_understood() -> None:
    for name in (
        "vgg11",
        "densenet121",
        "mobilenetv3_small_050",
        "regnetx_002",
        "mixer_s32_224",
        "levit_128s",
        "mvitv2_tiny",
    ):
        net = on_meta(name)
        layers = layer_groups(net)
        assert len(layers) == len(set(timms_scales(net, 0.7).values())), name
        assert timm.is_model(name)
