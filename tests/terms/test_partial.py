"""Partial and open-set games: who gets which gradient, and how the weights come about."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.align.test_partial import slow as slow_osbp
from tests.support.games import normal, obeys, same_game
from tests.support.nets import vectors
from ttransfer.testing import Tags

FEATURES = [normal(0, 6, 4), normal(1, 3, 4)]
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
READINGS: list[Any] = [*FEATURES, normal(2, 6, 3), normal(3, 3, 3) * 2, LABELS]
READS = ("net(a).fc:in", "net(b).fc:in", "net(a)", "net(b)", "a.y")
CRITIC = tt.adapters.mlp(5)
NUMBERS = {"task": 0.0, "temperature": 0.5, "momentum": 0.9}
BCE = F.binary_cross_entropy_with_logits
Own = dict[str, Tensor]


def weighted(out: Tensor, other: Tensor, w: Tensor) -> Tensor:
    real = sum((wi * BCE(x, torch.ones_like(x)) for wi, x in zip(w, out, strict=True)), out.new_zeros(()))
    fake = sum((BCE(x, torch.zeros_like(x)) for x in other), out.new_zeros(()))
    return real / len(out) / 2 + fake / len(other) / 2


def pada_weights(mean: Tensor) -> Tensor:
    new = 0.9 * mean + 0.1 * (READINGS[3] / 0.5).softmax(1).mean(0)
    return (new / new.max())[LABELS]


def test_pada_is_the_loop() -> None:
    term = tt.terms.pada(*READS, critic=CRITIC)
    own, memory = term.init(torch.Generator().manual_seed(1), READINGS)
    assert torch.allclose(memory["mean"], torch.full((3,), 1 / 3, dtype=torch.float64))

    def plain(own: Own, f: Tensor, g: Tensor, z: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        return weighted(CRITIC.apply(own, f), CRITIC.apply(own, g), pada_weights(memory["mean"]))

    same_game(term, plain, READINGS, own=own, memory=memory, numbers=NUMBERS, still=(2, 3))


def test_padas_task_is_weighted_alike_and_its_mean_runs() -> None:
    term = tt.terms.pada(*READS, critic=CRITIC)
    own, memory = term.init(torch.Generator().manual_seed(1), READINGS)
    numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in {**NUMBERS, "scale": 0.0}.items()}

    def at(z: Tensor, task: float) -> Tensor:
        given = {**numbers, "task": torch.tensor(task, dtype=torch.float64)}
        return term.apply(own, memory, given, torch.tensor(0), [*FEATURES, z, *READINGS[3:]])[0]

    def wanted(z: Tensor) -> Tensor:
        w = pada_weights(memory["mean"])
        rows = [wi * F.cross_entropy(x, y) for wi, x, y in zip(w, z, LABELS, strict=True)]
        return 2.0 * torch.stack(rows).mean()

    found, true = (torch.func.grad(fn)(READINGS[2]) for fn in (lambda z: at(z, 2.0), wanted))
    assert torch.allclose(found, true, rtol=1e-11)
    for _ in range(200):
        memory = term.apply(own, memory, numbers, torch.tensor(0), READINGS)[1]
    assert torch.allclose(memory["mean"], (READINGS[3] / 0.5).softmax(1).mean(0), rtol=1e-8)


def test_iwan_is_the_loop() -> None:
    term = tt.terms.iwan(*READS[:2], first=tt.adapters.mlp(4), critic=CRITIC)
    own, memory = term.init(torch.Generator().manual_seed(1), FEATURES)

    def of(own: Own, name: str) -> Own:
        return {k.removeprefix(f"{name}."): p for k, p in own.items() if k.startswith(name)}

    def plain(own: Own, f: Tensor, g: Tensor) -> Tensor:
        first = [tt.adapters.mlp(4).apply(of(own, "first"), x.detach()) for x in (f, g)]
        raw = 1 - first[0].detach().sigmoid()[:, 0]
        critics = [CRITIC.apply(of(own, "critic"), x) for x in (f, g)]
        even = torch.ones(6, dtype=torch.float64)
        return weighted(first[0], first[1], even) + weighted(critics[0], critics[1], raw / raw.mean())

    same_game(term, plain, FEATURES, own=own, memory=memory)


def test_osbp_is_the_loop() -> None:
    torch.manual_seed(0)
    nets = {"body": nn.Linear(5, 4).double(), "head": nn.Linear(4, 3).double()}
    own = {name: tt.functional(net) for name, net in nets.items()}
    term = tt.terms.osbp("body(target)", "head:fn", threshold=0.3, scale=0.7)
    step = tt.step(own, tt.optim.sgd(1.0), trainable=("body", "head"), osbp=term)
    batch = vectors(0)
    state, logs = step(step.init(batch), batch)
    value = slow_osbp(nets["head"](nets["body"](batch["target"]["x"])), 0.3)
    assert torch.allclose(logs["osbp"], value, rtol=1e-12)
    for name, by in (("head", -1.0), ("body", 0.7)):
        grads = torch.autograd.grad(value, [*nets[name].parameters()], retain_graph=True)
        for (key, p), g in zip(nets[name].named_parameters(), grads, strict=True):
            assert torch.allclose(state.trainable[name][key], p + by * g, rtol=1e-11, atol=1e-14)
    assert not term.coupled


def test_they_obey_the_laws_of_terms() -> None:
    why = {"gradcheck": "the features' gradient is reversed on purpose"}
    first = {**why, "own-gradients": "the first critic's weights are constants for the second"}
    obeys(tt.terms.iwan(*READS[:2], first=tt.adapters.mlp(4), critic=CRITIC), FEATURES, first)
    detached = Tags(detaches=("target_logits",))
    obeys(tt.terms.pada(*READS, critic=CRITIC), READINGS, why, detached)
