"""Functional dropout in a forward of one's own follows the keys too."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import vectors
from ttransfer.core._keyed_functions import calls_dropout


class Own(nn.Module):
    """Calls dropout twice, as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.a(x), p=0.5, training=self.training)
        return self.fc(F.dropout(x, 0.5, self.training))


def step_of(net: nn.Module) -> tt.Step:
    return tt.step(
        {"net": tt.functional(net)},
        tt.optim.sgd(0.1),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
    )


def test_found_by_the_code_of_the_class() -> None:
    assert calls_dropout(Own())
    assert not calls_dropout(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    assert not calls_dropout(nn.TransformerEncoderLayer(8, 2))


@pytest.mark.parametrize("mode", ["eager", "compiled", "member"])
def test_the_same_state_and_batch_give_the_same_masks(mode: str) -> None:
    step, batch = step_of(Own().double()), vectors(0)
    state = step.init(batch, seed=1)
    before = torch.get_rng_state()
    wanted = step(state, batch)
    if mode == "eager":
        found = step(state, batch)
    elif mode == "compiled":
        found = tt.compile(step, backend="aot_eager")(state, batch)
    else:
        many = tt.ensemble(step, 2)
        found = tt.member(many(many.init(batch, seed=0), batch)[0], 1), wanted[1]
    assert worst(found, wanted) < 1e-12
    assert torch.equal(before, torch.get_rng_state())
    assert worst(step(tt.State(*state[:8], state.seed + 1), batch)[1], wanted[1]) > 1e-3


def test_the_two_calls_draw_differently() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([F.dropout(x, 0.5, self.training), F.dropout(x, 0.5, self.training)])

    apply = tt.functional(Twice(), mode="train").apply
    first, second = apply({}, {}, torch.ones(4, 50), keys=torch.arange(4)).value
    assert not torch.equal(first, second)
    assert 0.3 < (first == 0).float().mean() < 0.7


def test_a_timm_net_with_drop_rate_replays() -> None:
    net = timm.create_model("resnet10t", num_classes=3, in_chans=1, drop_rate=0.4)
    step = step_of(net)
    batch = {"source": {"x": torch.randn(4, 1, 32, 32), "y": torch.tensor([0, 1, 2, 0])}}
    state = step.init(batch)
    assert worst(step(state, batch), step(state, batch)) == 0.0
    assert "all from the state's seed" in tt.describe(step, batch)
