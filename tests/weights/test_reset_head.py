"""A head made anew: the target's shapes, a normal distribution, the same numbers each time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.testing import judge, parametrize_with_checks, weight_map_trial
from ttransfer.weights import reset_head

SRC = {"conv.weight": torch.ones(4), "fc.weight": torch.ones(6, 4), "fc.bias": torch.ones(6)}
LIKE = {"conv.weight": torch.zeros(4), "fc.weight": torch.zeros(3, 4), "fc.bias": torch.zeros(3)}


TRIAL = weight_map_trial(reset_head("fc.*", seed=3), SRC, LIKE, name="reset_head", examples=4)


@parametrize_with_checks([TRIAL])
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_graph() -> None:
    assert not judge(TRIAL, only=["one-graph"]).failed


def test_the_numbers_are_normal() -> None:
    like = {"fc.weight": torch.zeros(200, 300)}
    x = reset_head("fc.weight", std=0.5).apply({}, like)["fc.weight"]
    assert stats.kstest(x.flatten().numpy() / 0.5, "norm").pvalue > 0.01
    assert abs(torch.corrcoef(x)[0, 1]) < 0.3
    assert x.unique().numel() > 59_000
    big = reset_head("fc.weight").apply({}, {"fc.weight": torch.zeros(1000, 1000)})["fc.weight"]
    assert big.isfinite().all()
    assert abs(big.std() - 0.01) < 1e-4


def test_seeds_and_names() -> None:
    def made(seed: int, names: str = "fc.*", **more: torch.Tensor) -> torch.Tensor:
        return reset_head(names, seed=seed).apply(SRC, {**LIKE, **more})["fc.weight"]

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))
    assert torch.equal(made(1), made(1, "(fc|aux).*", **{"aux.weight": torch.zeros(3, 4)}))
    both = reset_head(".*weight").apply({}, {"fc.weight": torch.zeros(3, 4), "aux.weight": torch.zeros(3, 4)})
    assert not torch.equal(both["fc.weight"], both["aux.weight"])
    compiled = torch.compile(
        lambda like: reset_head("fc.*", seed=1).apply(SRC, like), backend="aot_eager", fullgraph=True
    )
    torch.compiler.reset()
    assert torch.equal(compiled(LIKE)["fc.weight"], made(1))


def test_biases() -> None:
    new = reset_head("fc.*", prior=0.01).apply(SRC, LIKE)
    torch.testing.assert_close(new["fc.bias"].sigmoid(), torch.full((3,), 0.01))
    level = torch.tensor([0.2, 0.3, 0.5]).log()
    assert torch.equal(reset_head("fc.*", bias=level).apply(SRC, LIKE)["fc.bias"], level)
    assert reset_head("fc.*", bias=-2).apply(SRC, LIKE)["fc.bias"].tolist() == [-2.0] * 3
    assert torch.equal(reset_head("fc.*").apply(SRC, LIKE)["fc.bias"], torch.zeros(3))


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.BatchNorm1d(4)])
def test_a_norm_inside_starts_at_its_identity(norm: nn.Module) -> None:
    head = nn.Sequential(norm, nn.Linear(4, 3))
    start = {name: x.clone() for name, x in norm.state_dict().items()}
    like = {name: x + 7 for name, x in head.state_dict().items()}
    new = reset_head(".*", prior=0.1).apply({}, like)
    for name, x in start.items():
        assert torch.equal(new[f"0.{name}"], x)
        assert new[f"0.{name}"].dtype == x.dtype
    assert math.isclose(new["1.bias"][0].sigmoid().item(), 0.1, rel_tol=1e-5)


def test_numbers_are_differentiated_through() -> None:
    def loss(std: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        new = reset_head("fc.*", std=std, bias=bias).apply(SRC, LIKE)
        return new["fc.weight"].square().sum() + new["fc.bias"].sum()

    std, bias = torch.tensor(0.5), torch.tensor(0.1)
    by_std, by_bias = torch.func.grad(loss, (0, 1))(std, bias)
    unit = reset_head("fc.*", std=1.0).apply(SRC, LIKE)["fc.weight"]
    torch.testing.assert_close(by_std, 2 * std * unit.square().sum())
    assert by_bias == 3


def test_the_old_head_goes_nowhere() -> None:
    plan = reset_head("fc.*").plan(SRC, LIKE)
    assert plan.unused == {"fc.weight": "reset", "fc.bias": "reset"}
    assert not plan.mismatched
    assert not plan.missing
    new = reset_head("fc.weight").apply(SRC, LIKE)
    assert new["fc.bias"] is SRC["fc.bias"]


def test_a_new_head_on_an_old_net() -> None:
    def of(classes: int) -> Any:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, classes))

    old, net = of(6), of(3)
    tt.weights.transfer(old.state_dict(), net, tt.weights.chain(reset_head("2.*"), tt.weights.match()))
    assert torch.equal(net[0].weight, old[0].weight)
    assert not net[2].bias.any()
    assert net[2].weight.std() < 0.05


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("head.*", "pattern 'head.*' matches no target; there are: conv.weight, fc.bias, fc.weight"),
        ("scale", r"how 'scale' \(4,\) float32 starts is not known"),
        ("bias", r"how 'bias' \(4,\) float32 starts is not known"),
        ("index", r"how 'index' \(4, 4\) int64 starts is not known"),
    ],
)
def test_mistakes_are_named(pattern: str, message: str, dry: bool) -> None:
    more = {"scale": torch.ones(4), "bias": torch.ones(4), "index": torch.ones(4, 4, dtype=torch.int64)}
    map, like = reset_head(pattern), LIKE if pattern == "head.*" else {**LIKE, **more}
    with pytest.raises(TransferError, match=f"reset_head: {message}"):
        (map.plan if dry else map.apply)(SRC, like)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": "a"}, "wanted a number or a tensor for 'std', got 'a'"),
        ({"std": torch.ones(3)}, r"wanted one std for all, got \(3,\) float32"),
        ({"bias": float("nan")}, "wanted a finite bias, got nan"),
        ({"bias": None}, "wanted a number or a tensor for 'bias', got NoneType"),
        ({"seed": 1.5}, "wanted an int for 'seed', got 1.5"),
        ({"prior": "x"}, "wanted a number for 'prior', got 'x'"),
        ({"prior": 1.0}, "wanted a prior between 0 and 1, got 1.0"),
        ({"prior": 0.1, "bias": 1.0}, "a prior gives the bias; give one of the two"),
        ({"prior": 0.1, "bias": torch.zeros(3)}, "a prior gives the bias; give one of the two"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TransferError, match=f"reset_head: {message}"):
        reset_head("fc.*", **options)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_a_std_is_a_number_of_at_least_0(std: float) -> None:
    with pytest.raises(TransferError, match="reset_head: wanted a std of at least 0"):
        reset_head("fc.*", std=std)


@pytest.mark.parametrize("dry", [False, True])
def test_a_bias_for_other_classes(dry: bool) -> None:
    map = reset_head("fc.*", bias=torch.zeros(7))
    with pytest.raises(TransferError, match=r"reset_head: bias \(7,\) float32 is not one for each class of 'fc.bias'"):
        (map.plan if dry else map.apply)(SRC, LIKE)
