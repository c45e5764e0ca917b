"""Models by name: made as torchvision makes them, on the meta device too, and never loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from ttransfer import TransferError
from ttransfer_ext.torchvision import model


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a test asked for weights")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)


def shapes(net: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(x.shape), x.dtype) for name, x in net.state_dict().items()}


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_b_16", "convnext_tiny", "efficientnet_b0", "fcn_resnet50", "retinanet_resnet50_fpn"]
)
def test_on_meta_it_has_the_tensors_of_the_real_one(name: str) -> None:
    with torch.device("meta"):
        net = model(name, classes=7)
        bare = {"weights_backbone": None} if "fcn" in name or "retina" in name else {}
        wanted = torchvision.models.get_model(name, weights=None, num_classes=7, **bare)
    assert all(x.is_meta for x in net.state_dict().values())
    assert shapes(net) == shapes(wanted)


def test_the_weights_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    ours = model("mobilenet_v3_small", classes=3)
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v3_small(num_classes=3)
    assert all(torch.equal(x, theirs.state_dict()[name]) for name, x in ours.state_dict().items())


def test_what_looks_at_values_is_made_on_meta_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looks(nn.Linear):
        def __init__(self, weights: None = None) -> None:
            super().__init__(2, 2)
            self.rate = torch.linspace(0, 1, 3)[1].item()

    monkeypatch.setattr("torchvision.models.get_model_builder", lambda name: Looks)
    with torch.device("meta"):
        net = model("resnet18")
    assert (net.rate, net.weight.is_meta) == (0.5, True)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("resnet81", {}, r"torchvision has no model 'resnet81'; did you mean 'resnet18'"),
        ("resnet18", {"weights": "DEFAULT"}, r"torchvision.model: weights would load weights; read a file with"),
        ("resnet18", {"dept": 3}, r"torchvision.model: 'resnet18' does not take these options: .*dept"),
        ("raft_small", {"classes": 3}, r"torchvision.model: 'raft_small' does not take these options: .*num_classes"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(TransferError, match=told):
        model(name, **options)
