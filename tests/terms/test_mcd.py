"""The three phases of MCD beside pytorch-adapt's, which are imperative."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ttransfer as tt
from tests.support.nets import Batch, vectors
from tests.support.peers import theirs
from tests.support.steps import refused

SOURCE, TARGET = ("net(source)[0]", "net(source)[1]"), ("net(target)[0]", "net(target)[1]")
TRAINS = {"all": ".*", "heads": "one.*|two.*", "body": "body.*"}
ORDER = ("all", "heads", *["body"] * 4)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.body(x)
        return self.one(z), self.two(z)


def game(weight: float = 1.0) -> tt.Step:
    nets = {"net": tt.functional(Heads(), mode="train")}
    phases = tt.terms.mcd(SOURCE, TARGET, "source.y", weight=weight)
    steps = {n: tt.step(nets, tt.optim.sgd(0.1), x, trainable={"net": TRAINS[n]}) for n, x in phases.items()}
    return tt.alternate(steps, order=ORDER)


def in_pytorch_adapt(batch: Batch) -> nn.Module:
    """One step of its hook."""
    net = Heads()
    both = theirs("pytorch_adapt.layers", "MultipleModels", net.one, net.two)
    rules = [
        (torch.optim.SGD(net.body.parameters(), 0.1),),
        (torch.optim.SGD([*net.one.parameters(), *net.two.parameters()], 0.1),),
    ]
    weighters = {f"{x}_weighter": theirs("pytorch_adapt.weighters", "SumWeighter") for x in "xyz"}
    hook = theirs("pytorch_adapt.hooks", "MCDHook", g_opts=list(rules[0]), c_opts=list(rules[1]), repeat=4, **weighters)
    given = {
        "src_imgs": batch["source"]["x"],
        "target_imgs": batch["target"]["x"],
        "src_labels": batch["source"]["y"],
        "src_domain": torch.zeros(len(batch["source"]["x"])),
        "target_domain": torch.ones(len(batch["target"]["x"])),
        "G": net.body,
        "C": both,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hook(given)
    return net


def by_hand(batch: Batch, weight: float) -> nn.Module:
    net = Heads()
    entropy: Callable[..., Tensor] = nn.functional.cross_entropy
    parts = {"all": [*net.parameters()], "heads": [*net.one.parameters(), *net.two.parameters()]}
    for phase in ORDER:
        trained = parts.get(phase, [*net.body.parameters()])
        loss = torch.zeros((), dtype=torch.float64)
        if phase != "body":
            loss = sum((entropy(z, batch["source"]["y"]) for z in net(batch["source"]["x"])), loss)
        if phase != "all":
            a, b = (z.softmax(1) for z in net(batch["target"]["x"]))
            loss = loss + (-weight if phase == "heads" else weight) * (a - b).abs().mean()
        grads = torch.autograd.grad(loss, trained)
        with torch.no_grad():
            for p, g in zip(trained, grads, strict=True):
                p -= 0.1 * g
    return net


def gap(state: tt.State, net: nn.Module) -> float:
    ours = {**state.frozen["net"], **state.trainable["net"]}
    return max((ours[name] - p).abs().max().item() for name, p in net.named_parameters())


def test_a_step_is_pytorch_adapts() -> None:
    step, batch = game(), vectors(0)
    state, logs = step(step.init(batch), batch)
    assert gap(state, in_pytorch_adapt(batch)) < 1e-12
    assert logs["heads.apart"] < 0 < logs["body.near"]


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_a_step_is_the_loop(weight: float) -> None:
    step, batch = game(weight), vectors(1)
    state, _ = step(step.init(batch), batch)
    assert gap(state, by_hand(batch, weight)) < 1e-12


def test_a_micro_batch_may_be_split() -> None:
    phases = tt.terms.mcd(SOURCE, TARGET, "source.y")
    assert not any(term.coupled for terms in phases.values() for term in terms.values())


def test_one_read_is_refused() -> None:
    refused(lambda: tt.terms.mcd("net(source)", TARGET, "source.y"), "mcd: wanted two reads", "net(source)")
    refused(lambda: tt.terms.mcd(SOURCE, TARGET[:1], "source.y"), "mcd: wanted two reads")
