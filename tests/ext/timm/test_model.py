"""Models by name: made as timm makes them, on the meta device too, and never loaded."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import timm
import torch
from torch import nn

from ttransfer import TransferError
from ttransfer.weights._order import disorder
from ttransfer_ext.timm import model

NAMES = ("resnet18", "vit_tiny_patch16_224", "convnext_atto", "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a test asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def shapes(net: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(x.shape), x.dtype) for name, x in net.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_on_meta_it_has_the_tensors_of_the_real_one(name: str) -> None:
    with torch.device("meta"):
        net = model(name, classes=7, channels=1)
    assert all(x.is_meta for x in net.state_dict().values())
    assert shapes(net) == shapes(timm.create_model(name, num_classes=7, in_chans=1))


@pytest.mark.parametrize("name", [*NAMES, "inception_v3", "densenet121", "hrnet_w18_small", "levit_128s", "dla34"])
def test_tensors_are_listed_as_they_are_defined_unless_somebody_sorts_them(name: str) -> None:
    with torch.device("meta"):
        state = model(name).state_dict()
    assert disorder(state) == ""
    assert disorder(dict(sorted(state.items()))) != ""
    assert disorder(dict(sorted(state.items(), key=lambda one: (-one[1].itemsize, one[0])))) != ""


def test_the_weights_are_those_of_timm() -> None:
    torch.manual_seed(0)
    ours = model("resnet10t", classes=3)
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", num_classes=3)
    assert ours.training
    assert all(torch.equal(x, theirs.state_dict()[name]) for name, x in ours.state_dict().items())


def test_defaults_tags_and_options() -> None:
    with torch.device("meta"):
        assert model("resnet18.a1_in1k").num_classes == 1000
        assert model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1).pos_embed.shape == (1, 17, 192)
        assert isinstance(model("resnet18", classes=0).fc, nn.Identity)


def test_what_looks_at_values_is_made_on_meta_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = torch.linspace(0, 1, 3)[1].item()
            self.one, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
            self.other.weight = self.one.weight

    monkeypatch.setattr(timm, "create_model", lambda name, **options: Looks())
    with torch.device("meta"):
        net = model("resnet18")
    assert net.rate == 0.5
    assert net.one.weight.is_meta
    assert net.one.weight is net.other.weight


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("resnet81", {}, r"timm has no model 'resnet81'; did you mean 'resnet18'"),
        ("resnet18.a1_in2k", {}, r"timm has no weights 'a1_in2k' of 'resnet18'; did you mean 'a1_in1k'"),
        ("hf-hub:timm/resnet18", {}, r"timm has no model 'hf-hub:timm/resnet18': want an architecture by name"),
        ("timm/resnet18", {}, r"nothing is loaded from elsewhere"),
        (
            "resnet18",
            {"pretrained": True},
            r"timm.model: pretrained would load weights; read a file with tt.weights.load",
        ),
        ("resnet18", {"checkpoint_path": "x.pth"}, r"checkpoint_path would load weights"),
        ("resnet18", {"dept": 3}, r"timm.model: 'resnet18' does not take these options: .*dept"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(TransferError, match=told):
        model(name, **options)
