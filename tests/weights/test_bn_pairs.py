"""Which batch norms can be folded: real nets, and nets where one must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.norms import randomised
from ttransfer._errors import TransferError
from ttransfer.weights import BnPair, bn_pairs, folded

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions of one form, and a batch norm, used as one likes."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3, eps=1e-3)
        self.how = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def twice_read(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.bn(y) + y


def returned(net: Net, x: Tensor) -> list[Tensor]:
    y = net.a(x)
    return [net.bn(y), y]


def weight_read(net: Net, x: Tensor) -> Tensor:
    return net.bn(net.a(x)) * net.a.weight.mean()


def bias_read(net: Net, x: Tensor) -> Tensor:
    return net.bn(net.a(x)) + torch.as_tensor(net.a.bias).view(-1, 1, 1)


def called_in_place(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y.relu_()
    return net.bn(y)


CASES: list[tuple[str, Callable[..., object], dict[str, BnPair]]] = [
    ("plain", lambda net, x: net.bn(net.a(x)), {"bn": BnPair("a", 1e-3)}),
    ("second", lambda net, x: net.bn(net.b(net.a(x).relu())), {"bn": BnPair("b", 1e-3)}),
    ("activation between", lambda net, x: net.bn(net.a(x).relu()), {}),
    ("in place between", called_in_place, {}),
    ("read twice", twice_read, {}),
    ("returned", returned, {}),
    ("weight read elsewhere", weight_read, {}),
    ("bias read elsewhere", bias_read, {}),
    ("layer called twice", lambda net, x: net.bn(net.a(net.a(x))), {}),
    ("norm called twice", lambda net, x: net.bn(net.b(net.bn(net.a(x)))), {}),
    ("norm before", lambda net, x: net.a(net.bn(x)), {}),
    ("sum between", lambda net, x: net.bn(net.a(x) + net.b(x)), {}),
]


@pytest.mark.parametrize(("forward", "wanted"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_found(forward: Forward, wanted: dict[str, BnPair]) -> None:
    net = randomised(Net(forward))
    before = {name: x.clone() for name, x in net.state_dict().items()}
    assert bn_pairs(net, X) == wanted
    assert not net.training
    assert not net.a._forward_hooks
    assert not net.bn._forward_pre_hooks
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    if wanted:
        torch.testing.assert_close(folded(net, wanted)(X), net(X), rtol=1e-9, atol=1e-9)


class Standardised(nn.Conv2d):
    """Weight standardisation: what is folded into the weight is lost."""

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class Doubled(nn.BatchNorm2d):
    """Something that its submodules do not say."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_layers_and_norms_of_another_kind() -> None:
    net = Net(lambda net, x: net.bn(net.a(x)))
    net.a = Standardised(3, 3, 3, padding=1)
    assert bn_pairs(randomised(net), X) == {}
    net = Net(lambda net, x: net.bn(net.a(x)))
    net.bn = Doubled(3)
    assert bn_pairs(randomised(net), X) == {}
    tied = Net(lambda net, x: net.bn(net.a(net.b(x))))
    tied.b.weight = tied.a.weight
    assert bn_pairs(randomised(tied), X) == {}
    named_twice = Net(lambda net, x: net.bn(net.a(x)))
    named_twice.other = named_twice.a
    assert bn_pairs(randomised(named_twice), X) == {}
    spectral = Net(lambda net, x: net.bn(net.a(x)))
    nn.utils.parametrizations.spectral_norm(spectral.a)
    assert bn_pairs(randomised(spectral), X) == {}


def test_norms_that_do_the_same() -> None:
    """torchvision's frozen batch norm, and an instance norm that has statistics."""
    misc = pytest.importorskip("torchvision.ops.misc")
    for norm in (misc.FrozenBatchNorm2d(3), nn.InstanceNorm2d(3, affine=True, track_running_stats=True)):
        net: Any = Net(lambda net, x: net.bn(net.a(x)))
        net.bn = norm
        pairs = bn_pairs(randomised(net), X)
        assert pairs == {"bn": BnPair("a")}
        torch.testing.assert_close(folded(net, pairs)(X), net(X), rtol=1e-9, atol=1e-9)


def test_training_statistics_are_no_pair() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(TransferError, match="bn_pairs: the module has no batch norm with running statistics"):
        bn_pairs(net, X.float())


def test_a_module_in_training_mode_stays_so() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    assert bn_pairs(net, torch.randn(5, 3)) == {"1": BnPair("0")}
    assert net.training
    assert net[1].num_batches_tracked == 0


def test_linear_over_a_sequence() -> None:
    """There the batch norm's channels are not the layer's outputs, be they as many."""
    net = randomised(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    assert bn_pairs(net, torch.randn(2, 4, 4, dtype=torch.float64)) == {}


def test_on_the_meta_device() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to("meta")
    assert bn_pairs(net, torch.empty(1, 3, 6, 6, device="meta")) == {"1": BnPair("0")}


@pytest.mark.parametrize(("name", "count"), [("tf_efficientnet_lite0", 49), ("resnet18", 20)])
def test_nets_of_timm(name: str, count: int) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=10)
    norms: list[Any] = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.running_mean, std=0.2)
        nn.init.normal_(norm.bias, std=0.2)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    net, x = net.double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    pairs = bn_pairs(net, x)
    assert len(pairs) == count == len(norms)
    fast = folded(net, pairs)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fast.modules())
    with torch.no_grad():
        wanted, found = net(x), fast(x)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())
