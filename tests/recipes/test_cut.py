"""A net in two, so that what is frozen runs once."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.recipes import cut, features, finetune

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CASES = {
    "resnet10t": ("layer3", "layer4.0", "fc:in", "act1"),
    "tf_efficientnet_lite0": ("blocks.4", "classifier:in"),
    "vit_tiny_patch16_224": ("head:in",),
    "convnext_atto": ("stages.2",),
}


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    more = {"img_size": 32, "depth": 2} if name.startswith("vit") else {}
    return timm.create_model(name, num_classes=4, **more)


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, places in CASES.items() for at in places])
def test_the_halves_are_the_whole(name: str, at: str) -> None:
    net = model(name).eval()
    front, back = cut(net, at, X)
    torch.testing.assert_close(back(front(X)), net(X))
    own = dict(net.named_parameters())
    assert all(torch.equal(p, own[key]) for key, p in back.named_parameters())
    assert len(list(back.parameters())) < len(own)


def test_a_probe_on_features_is_the_probe() -> None:
    net = model("resnet10t")
    front, back = cut(net, "fc:in", X)
    labels = torch.tensor([0, 1, 2])
    kept = {"data": {"x": features(front, X, batch_size=2), "y": labels}}
    slow = finetune(net, tt.optim.sgd(0.1), trainable="fc.*", statistics="eval")
    fast = finetune(back, tt.optim.sgd(0.1))
    one, other = slow.init({"data": {"x": X, "y": labels}}), fast.init(kept)
    for _ in range(3):
        one, _ = slow(one, {"data": {"x": X, "y": labels}})
        other, _ = fast(other, kept)
    torch.testing.assert_close(one.trainable["net"], other.trainable["net"])
    # And back into the model, by name.
    plan = tt.weights.transfer(tt.state_dict(fast, other, "net"), net, tt.weights.match_by_name(allow="(?!fc).*"))
    assert list(plan.made) == ["fc.weight", "fc.bias"]


def test_the_model_is_left_alone() -> None:
    net = model("resnet10t").train()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    _, back = cut(net, "layer2", X)
    assert back.training
    assert net.training
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(self.body(x)) + x)


def test_mistakes_are_named() -> None:
    net = model("resnet10t")
    with pytest.raises(TransferError, match="ResNet has no submodule 'layer5'"):
        cut(net, "layer5", X)
    with pytest.raises(TransferError, match="'body' runs 2 times"):
        cut(Twice(), "body", torch.ones(2, 4))
    with pytest.raises(TransferError, match=r"at 'layer1.0.conv1' the two halves of ResNet together are not the model"):
        cut(net, "layer1.0.conv1", X)
    for nothing in ([], X[:0], [X[:0]], iter([])):
        with pytest.raises(TransferError, match="features: no inputs"):
            features(net, nothing)
    pairs = DataLoader(TensorDataset(X, torch.zeros(len(X))), batch_size=2)
    told = r"wanted batches of inputs, tensors \(n, ...\), got \[\(2, .*; give the inputs alone, \(x for x, "
    with pytest.raises(TransferError, match=f"features: {told}"):
        features(net, pairs)
    for wrong in ([{"x": X}], [torch.tensor(1.0)], torch.tensor(1.0)):
        with pytest.raises(TransferError, match=r"features: wanted batches of inputs, tensors \(n, ...\), got"):
            features(net, wrong)  # type: ignore[arg-type]
    with pytest.raises(TransferError, match="features: wanted a part that gives a tensor, got tuple"):
        features(Pair(), X)
    with pytest.raises(TransferError, match=r"features: wanted inputs \(n, ...\) or an iterable of batches, got int"):
        features(net, 5)  # type: ignore[arg-type]
    for size in (0, 2.5):
        with pytest.raises(TransferError, match="features: batch_size must be a whole number of at least 1, got"):
            features(net, X, batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(TransferError, match=r"cut: no example .*; give the model's inputs: cut\(net, 'layer1', x\)"):
        cut(net, "layer1")


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x, x


def test_features_of_batches() -> None:
    net = nn.Linear(4, 2)
    x = torch.randn(10, 4)
    pairs = DataLoader(TensorDataset(x, torch.zeros(10)), batch_size=4)
    for batches in (x, [x[:3], x[:0], x[3:]], (x for x, _ in pairs)):
        torch.testing.assert_close(features(net, batches, batch_size=4), net(x).detach())
