"""The term compares sums of variances that fade, as DomainBed's corrected moving average does."""

from __future__ import annotations

import torch
from torch import Tensor

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.sharded import gap
from tests.support.steps import run, small_step

DOMAINS = ("source", "target")
TERM = tt.terms.fishr(
    [f"student({d}).fc:in" for d in DOMAINS],
    [f"student({d})" for d in DOMAINS],
    [f"{d}.y" for d in DOMAINS],
    decay=0.9,
    weight=1.0,
)


def batch(seed: int) -> dict[str, dict[str, Tensor]]:
    made = vectors(seed)
    made["target"]["y"] = (torch.arange(4) + seed) % 3
    return made


def variances(net: torch.nn.Module, batch: dict[str, dict[str, Tensor]]) -> Tensor:
    xs = [batch[d]["x"] for d in DOMAINS]
    features = [net.get_submodule("hidden")(x).relu() for x in xs]
    return tt.align.head_variances(features, [net(x) for x in xs], [batch[d]["y"] for d in DOMAINS], variant="code")


def test_beside_the_moving_average_of_domainbed() -> None:
    net, average = mlp(1), torch.zeros((), dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    value = torch.zeros(())
    for seed in range(3):
        moved = 0.9 * average + 0.1 * variances(net, batch(seed))
        corrected = moved / 0.1
        value = (corrected - corrected.mean(0)).square().mean(1).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        average = moved.detach()
    step = small_step({"fishr": TERM}, {"student": tt.functional(mlp(1))})
    state, logs = run(step, step.init(batch(0)), *map(batch, range(3)))
    torch.testing.assert_close(logs["fishr"], value.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(0.1 * state.terms["fishr"]["variances"], average, rtol=1e-9, atol=1e-12)
    weight: Tensor = net.get_submodule("hidden").get_parameter("weight")
    torch.testing.assert_close(state.trainable["student"]["hidden.weight"], weight.detach(), rtol=1e-9, atol=1e-12)


def test_sharded_is_single() -> None:
    step = small_step({"fishr": TERM}, {"student": tt.functional(mlp(1))})
    assert gap(step, [batch(0), batch(1)]) < 1e-11
