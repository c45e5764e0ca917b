"""Batch normalisation by domain: `buffers=` gives AdaBN, and the statistics of domain-specific normalisation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ttransfer as tt
from tests.support.nets import Conv, conv, images
from tests.support.peers import theirs

BATCHES = [images(seed) for seed in range(4)]
TASK = tt.term(F.cross_entropy, "student(source)", "source.y")


def nothing(x: Tensor) -> Tensor:
    """A term that only asks for the pass."""
    return 0 * x.sum()


def confident(x: Tensor) -> Tensor:
    return tt.losses.entropy(x)


def trained(loss: Any, net: nn.Module, rate: float = 0.1) -> tuple[tt.Step, tt.State]:
    step = tt.step(
        {"student": tt.functional(net)},
        tt.optim.sgd(rate),
        trainable=("student",),
        buffers={"student": "per_domain"},
        task=TASK,
        other=tt.term(loss, "student(target)"),
    )
    state = step.init(BATCHES[0])
    for batch in BATCHES:
        state, _ = step(state, batch)
    return step, state


def by_hand(model: nn.Module, weights: list[nn.Parameter], loss: Any) -> None:
    optimizer = torch.optim.SGD(weights, lr=0.1)
    for batch in BATCHES:
        value = F.cross_entropy(model(batch["source"]["x"], 0), batch["source"]["y"])
        value = value + loss(model(batch["target"]["x"], 1))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def alike(step: tt.Step, state: tt.State, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    model.eval()
    with torch.no_grad():
        for domain, name in enumerate(("source", "target")):
            x = BATCHES[1][name]["x"]
            yield tt.predict(step, state, f"student({name})")(x), model(x, domain)


class Numbered(nn.Module):
    """pytorch-adapt's model wants its domain as a tensor."""

    def __init__(self, peer: Any) -> None:
        super().__init__()
        self.peer = peer

    def forward(self, x: Tensor, domain: int) -> Tensor:
        return self.peer(x, torch.tensor([domain]))


def test_adabn_beside_pytorch_adapt() -> None:
    module = conv(1)
    model = Numbered(theirs("pytorch_adapt.layers", "AdaBNModel", copy.deepcopy(module), affine_domain=0)).double()
    weights = [p for name, p in model.named_parameters() if "bns.1" not in name]
    by_hand(model, weights, nothing)
    step, state = trained(nothing, module)
    for ours, other in alike(step, state, model):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-12)
    running = state.buffers["student(target)"]["bn.running_mean"]
    torch.testing.assert_close(running, model.peer.model.bn.bns[1].running_mean, rtol=1e-9, atol=0)
    assert not torch.allclose(running, state.buffers["student(source)"]["bn.running_mean"], atol=1e-2)


class Specific(Conv):
    """Two sets of statistics for one set of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = theirs("pytorch_adapt.layers.adaptive_batch_norm", "AdaptiveBatchNorm2d", 4, affine=False)

    def forward(self, x: Tensor, domain: int = 0) -> Tensor:
        x = self.act(self.bn(self.conv(x), domain))
        return self.fc(x.mean((2, 3)))


def test_the_statistics_of_dsbn() -> None:
    module = conv(1)
    module.bn = nn.BatchNorm2d(4, affine=False).double()
    model = Specific().double()
    model.conv.load_state_dict(module.conv.state_dict())
    model.fc.load_state_dict(module.fc.state_dict())
    by_hand(model, list(model.parameters()), confident)
    step, state = trained(confident, module)
    for ours, other in alike(step, state, model):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-12)


def test_adabn_after_training_by_passes_alone() -> None:
    """Weights that stand still: the running statistics are the target's alone, by the rule of the module."""
    module = conv(1)
    _, state = trained(nothing, module, rate=0.0)
    mean, variance = torch.zeros(4).double(), torch.ones(4).double()
    for batch in BATCHES:
        x = module.conv(batch["target"]["x"]).detach()
        mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3))
        variance = 0.9 * variance + 0.1 * x.var((0, 2, 3))
    buffers = state.buffers["student(target)"]
    torch.testing.assert_close(buffers["bn.running_mean"], mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(buffers["bn.running_var"], variance, rtol=1e-9, atol=0)


@pytest.mark.parametrize("policy", ["eval", "shared"])
def test_frozen_statistics_are_read_and_not_written(policy: str) -> None:
    step = tt.step(
        {"student": tt.functional(conv(1))},
        tt.optim.sgd(0.1),
        trainable=("student",),
        buffers={"student": policy},
        task=TASK,
        other=tt.term(nothing, "student(target)"),
    )
    state = step.init(BATCHES[0])
    new, logs = step(state, BATCHES[0])
    source = BATCHES[0]["source"]
    wanted = F.cross_entropy(tt.predict(step, state, "student")(source["x"]), source["y"])
    kept = torch.equal(new.buffers["student"]["bn.running_mean"], state.buffers["student"]["bn.running_mean"])
    assert kept == (policy == "eval")
    assert torch.allclose(logs["task"], wanted, rtol=1e-9) == (policy == "eval")
