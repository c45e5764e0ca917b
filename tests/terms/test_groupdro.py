"""The weights are a state that follows the risks; the loss is DomainBed's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.sharded import gap
from tests.support.steps import run, small_step

READS = ["student(source)", "student(target)"], ["source.y", "target.y"]


def batches(count: int) -> list[dict[str, dict[str, Tensor]]]:
    made = [vectors(seed) for seed in range(count)]
    for seed, one in enumerate(made):
        one["target"]["y"] = (torch.arange(4) + seed) % 3
    return made


def test_beside_domainbeds_loop() -> None:
    net, q, eta = mlp(1), torch.ones(2, dtype=torch.float64), 0.5
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses: list[float] = []
    for batch in batches(4):
        risks = [F.cross_entropy(net(batch[d]["x"]), batch[d]["y"]) for d in ("source", "target")]
        q = torch.stack([q[i] * (eta * risk.detach()).exp() for i, risk in enumerate(risks)])
        q = q / q.sum()
        loss = q[0] * risks[0] + q[1] * risks[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    step = small_step({"dro": tt.terms.groupdro(*READS, eta=eta)}, {"student": tt.functional(mlp(1))})
    state = step.init(batches(1)[0])
    assert state.terms["dro"]["weights"].tolist() == [0.5, 0.5]
    state, logs = run(step, state, *batches(4))
    torch.testing.assert_close(state.terms["dro"]["weights"], q, rtol=1e-9, atol=0)
    assert abs(logs["dro"].item() - losses[-1]) < 1e-9
    torch.testing.assert_close(state.trainable["student"]["fc.weight"], net.fc.weight.detach(), rtol=1e-9, atol=1e-12)


def test_sharded_is_single() -> None:
    step = small_step({"dro": tt.terms.groupdro(*READS, eta=0.5)}, {"student": tt.functional(mlp(1))})
    assert gap(step, batches(2)) < 1e-11
