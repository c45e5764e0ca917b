"""Deeper networks that compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.channel_nets import IMAGE, moved
from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import chain, net2deeper, rename, transfer


def net(deep: bool, kernel: int = 3, eps: float = 1e-5) -> nn.Sequential:
    torch.manual_seed(0)
    conv = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    more = [nn.Conv2d(4, 4, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(4, eps), nn.ReLU()]
    head = [nn.Flatten(), nn.Linear(144, 5), nn.ReLU()]
    parts = [*conv, *(more if deep else []), *head, *([nn.Linear(5, 5), nn.ReLU()] if deep else []), nn.Linear(5, 2)]
    return nn.Sequential(*parts)


SHALLOW, DEEP = moved(net(False)), moved(net(True))
DEEPER = chain(rename({"4": "7", "6": "11"}), net2deeper({"3": "0", "4": "0", "9": "7"}))

TRIALS = (weight_map_trial(DEEPER, SHALLOW.state_dict(), DEEP.state_dict(), examples=4, name="net2deeper"),)


@parametrize_with_checks(TRIALS)
def test_laws(check) -> None:
    check()


@pytest.mark.parametrize(("kernel", "eps"), [(1, 1e-5), (3, 1e-5), (5, 1e-3)])
def test_the_function_stays(kernel: int, eps: float) -> None:
    deep = moved(net(True, kernel, eps))
    deeper = chain(rename({"4": "7", "6": "11"}), net2deeper({"3": "0", "4": "0", "9": "7"}, eps=eps))
    plan = transfer(SHALLOW.state_dict(), deep, deeper)
    torch.testing.assert_close(deep(IMAGE), SHALLOW(IMAGE), rtol=1e-9, atol=1e-9)
    assert plan.made["3.weight"].how == "identity after 0"
    assert plan.made["3.weight"].sources == ()


def test_conv1d_conv3d_and_dtype() -> None:
    for make, x in ((nn.Conv1d, torch.randn(2, 3, 7)), (nn.Conv3d, torch.randn(2, 3, 5, 5, 5))):
        src, like = make(3, 3, 3).state_dict(), {f"new.{k}": v.double() for k, v in make(3, 3, 3).state_dict().items()}
        new = net2deeper({"new": "old"}).apply({f"old.{k}": v for k, v in src.items()}, like)
        assert new["new.weight"].dtype == torch.float64  # nothing else says what
        layer = make(3, 3, 3, padding=1)
        layer.load_state_dict({"weight": new["new.weight"], "bias": new["new.bias"]})
        torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize(("affine", "eps"), [(True, 1e-5), (False, 1e-5), (False, 1e-2)])
def test_a_batch_norm_with_or_without_a_scale_undoes_its_eps(affine: bool, eps: float) -> None:
    x, norm = torch.randn(3, 4, 5, dtype=torch.float64), nn.BatchNorm1d(4, eps, affine=affine).double().eval()
    like = {f"new.{name}": value for name, value in norm.state_dict().items()}
    new = net2deeper({"new": "old"}, eps=eps).apply({"old.weight": torch.ones(4, 3)}, like)
    norm.load_state_dict({name: new[f"new.{name}"] for name in norm.state_dict()})
    torch.testing.assert_close(norm(x), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True)])
def test_a_norm_of_each_example_is_no_identity(norm: nn.Module) -> None:
    like = {f"2.{name}": value for name, value in norm.state_dict().items()}
    with pytest.raises(TransferError, match="a new norm may be a batch norm"):
        net2deeper({"2": "0"}).apply({"0.weight": torch.ones(4, 3)}, like)


@pytest.mark.parametrize(
    ("layers", "like", "message"),
    [
        ({"2": "1"}, {"2.weight": (4, 4)}, "net2deeper: the source has no '1.weight'"),
        ({"2": "0"}, {"3.weight": (4, 4)}, "net2deeper: the target has no '2'"),
        ({"0": "0"}, {"0.weight": (4, 4)}, "net2deeper: '0' is no new layer: the source has '0.weight'"),
        ({"2": "0"}, {"2.weight": (4, 5)}, r"'2.weight' \(4, 5\) float32 holds no identity of 4 channels"),
        ({"2": "0"}, {"2.weight": (4, 4, 2)}, "and a kernel with a middle"),
        ({"2": "0"}, {"2.weight": (5,)}, r"'2.weight' \(5,\) float32 holds no identity of 4 channels"),
        ({"2": "0"}, {"2.weight": (4,)}, "'2.weight' .4,. float32 holds no identity: without a running_mean beside it"),
        ({"2": "0"}, {"2.alpha": (4,)}, "it may be a linear layer, a convolution or a batch norm"),
    ],
)
def test_mistakes_are_named(layers: dict, like: dict, message: str) -> None:
    src = {"0.weight": torch.ones(4, 3)}
    with pytest.raises(TransferError, match=message):
        net2deeper(layers).plan(src, {name: torch.ones(shape) for name, shape in like.items()})
