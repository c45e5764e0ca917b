"""Folding: function preservation for every kind of layer, and torch's own fusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

from tests.support.norms import randomised
from ttransfer._errors import TransferError
from ttransfer.testing import judge, parametrize_with_checks, weight_map_trial
from ttransfer.weights import BnPair, fold_bn

LAYERS = {
    "conv1d": (lambda b: nn.Conv1d(4, 6, 3, bias=b), nn.BatchNorm1d(6), (2, 4, 7)),
    "conv2d": (lambda b: nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, bias=b), nn.BatchNorm2d(6), (2, 4, 7, 8)),
    "grouped": (lambda b: nn.Conv2d(4, 6, 3, groups=2, bias=b), nn.BatchNorm2d(6), (2, 4, 7, 8)),
    "depthwise": (lambda b: nn.Conv2d(4, 4, 3, groups=4, padding=1, bias=b), nn.BatchNorm2d(4), (2, 4, 7, 8)),
    "conv3d": (lambda b: nn.Conv3d(2, 3, 3, bias=b), nn.BatchNorm3d(3), (1, 2, 5, 5, 5)),
    "transposed": (lambda b: nn.ConvTranspose2d(4, 6, 3, stride=2, bias=b), nn.BatchNorm2d(6), (2, 4, 5, 6)),
    "transposed grouped": (lambda b: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=b), nn.BatchNorm2d(6), (2, 4, 5, 6)),
    "transposed square": (lambda b: nn.ConvTranspose1d(6, 6, 3, groups=3, bias=b), nn.BatchNorm1d(6), (2, 6, 5)),
    "linear": (lambda b: nn.Linear(4, 6, bias=b), nn.BatchNorm1d(6, eps=1e-3), (5, 4)),
    "not affine": (lambda b: nn.Conv2d(4, 6, 3, bias=b), nn.BatchNorm2d(6, affine=False), (2, 4, 7, 8)),
}


def pair_of(net: Any) -> dict[str, BnPair]:
    transposed = net[0].groups if getattr(net[0], "transposed", False) else 0
    return {"1": BnPair("0", net[1].eps, transposed)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_answers_stay(name: str, bias: bool) -> None:
    make, norm, shape = LAYERS[name]
    net, bare = randomised(nn.Sequential(make(bias), norm)), nn.Sequential(make(True)).double()
    new = fold_bn(pair_of(net)).apply(net.state_dict(), {})
    bare.load_state_dict(new)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(bare(x), net(x), rtol=1e-9, atol=1e-9)


def test_as_torch() -> None:
    for name in ("conv2d", "depthwise", "transposed"):  # with groups torch's fails in a transposed one
        make, norm, _ = LAYERS[name]
        net: Any = randomised(nn.Sequential(make(True), norm))
        wanted = fusion.fuse_conv_bn_eval(net[0], net[1], transpose=name == "transposed")
        new = fold_bn(pair_of(net)).apply(net.state_dict(), {})
        torch.testing.assert_close(new["0.weight"], wanted.weight.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(new["0.bias"], wanted.bias.detach(), rtol=1e-12, atol=1e-12)


def source(bias: bool, shape: tuple[int, ...] = (3, 2, 2, 2)) -> dict[str, Tensor]:
    src = {"conv.weight": torch.zeros(shape), **({"conv.bias": torch.zeros(3)} if bias else {}), "fc": torch.zeros(2)}
    norm = {"weight": torch.zeros(3), "bias": torch.zeros(3), "running_mean": torch.zeros(3)}
    norm |= {"running_var": torch.ones(3), "num_batches_tracked": torch.tensor(5)}
    return {**src, **{f"bn.{name}": x for name, x in norm.items()}}


def slow(src: dict[str, Tensor], like: Any) -> dict[str, Tensor]:
    weight, bias = src["conv.weight"], src.get("conv.bias", torch.zeros(3, dtype=torch.float64))
    new = {"conv.weight": [], "conv.bias": []}
    for o in range(3):
        factor = src["bn.weight"][o] / (src["bn.running_var"][o] + 1e-3) ** 0.5
        new["conv.weight"].append(factor * weight[o])
        new["conv.bias"].append(factor * (bias[o] - src["bn.running_mean"][o]) + src["bn.bias"][o])
    return {"fc": src["fc"], **{name: torch.stack(rows) for name, rows in new.items()}}


LIKE = {"conv.weight": torch.zeros(3, 2, 2, 2), "conv.bias": torch.zeros(3), "fc": torch.zeros(2)}
TRIALS = [
    weight_map_trial(fold_bn({"bn": BnPair("conv", 1e-3)}), source(bias), LIKE, reference=slow, name=name, examples=4)
    for name, bias in (("with_bias", True), ("without", False))
]
TRIALS.append(
    weight_map_trial(
        fold_bn({"bn": BnPair("conv", transposed=1)}),
        source(True, (2, 3, 2, 2)),
        {**LIKE, "conv.weight": torch.zeros(2, 3, 2, 2)},
        name="transposed",
        examples=4,
    )
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_graph() -> None:
    assert not judge(TRIALS[0], only=["one-graph"]).failed


def test_plan() -> None:
    plan = fold_bn({"bn": "conv"}).plan(source(False), LIKE)
    assert list(plan.made) == ["conv.weight", "conv.bias", "fc"]
    assert plan.made["conv.weight"].sources == ("conv.weight", "bn.running_var", "bn.weight")
    assert plan.made["conv.bias"].how == "bn folded in, eps 1e-05"
    assert plan.unused == {"bn.num_batches_tracked": "folded"}
    assert not plan.missing
    assert not plan.mismatched


def test_the_dtype_is_the_layers() -> None:
    src = {name: x.bfloat16() if name.startswith("conv") else x for name, x in source(False).items()}
    new = fold_bn({"bn": "conv"}).apply(src, {})
    assert new["conv.weight"].dtype == new["conv.bias"].dtype == torch.bfloat16


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"bn": "konv"}, "the source has no 'konv.weight'; did you mean 'conv.weight'"),
        ({"bn1": "conv"}, "the source has no 'bn1.running_mean'; did you mean 'bn.running_mean'"),
        (
            {"bn": BnPair("conv", transposed=1)},
            r"'bn.running_mean' \(3,\) float32 does not go with 'conv.weight' \(3, 2, 2, 2\) .* which has 2 outputs",
        ),
    ],
)
def test_mistakes_are_named(pairs: Any, message: str, dry: bool) -> None:
    map = fold_bn(pairs)
    with pytest.raises(TransferError, match=f"fold_bn: {message}"):
        (map.plan if dry else map.apply)(source(True), LIKE)


def test_one_layer_twice() -> None:
    with pytest.raises(TransferError, match="fold_bn: 'conv' has two batch norms"):
        fold_bn({"a": "conv", "b": BnPair("conv", 1e-3)})
