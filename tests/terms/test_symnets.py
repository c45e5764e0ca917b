"""The two phases of SymNets are the loop."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import ttransfer as tt
from tests.align.test_symnets import slow_category, slow_confusion, slow_domain, slow_entropy
from tests.support.nets import Batch, vectors
from tests.support.steps import refused
from tests.terms.test_mcd import SOURCE, TARGET, TRAINS, Heads, gap


def by_hand(batch: Batch) -> nn.Module:
    net = Heads()
    for phase in ("heads", "body"):
        (s, s2), (t, t2) = (net(batch[d]["x"]) for d in ("source", "target"))
        y = batch["source"]["y"]
        if phase == "heads":
            loss = F.cross_entropy(s, y) + F.cross_entropy(s2, y) + slow_domain(s, t, s2, t2)
        else:
            loss = slow_category(s, s2, y) + 0.4 * (slow_confusion(t, t2) + slow_entropy(t, t2))
        heads = [*net.one.parameters(), *net.two.parameters()]
        trained = heads if phase == "heads" else [*net.body.parameters()]
        grads = torch.autograd.grad(loss, trained)
        with torch.no_grad():
            for p, g in zip(trained, grads, strict=True):
                p -= 0.1 * g
    return net


def test_it_is_the_loop() -> None:
    nets = {"net": tt.functional(Heads(), mode="train")}
    phases = tt.terms.symnets(SOURCE, TARGET, "source.y", weight=0.4)
    steps = {n: tt.step(nets, tt.optim.sgd(0.1), x, trainable={"net": TRAINS[n]}) for n, x in phases.items()}
    game, batch = tt.alternate(steps), vectors(0)
    state, _ = game(game.init(batch), batch)
    assert gap(state, by_hand(batch)) < 1e-12


def test_one_read_is_refused() -> None:
    refused(lambda: tt.terms.symnets("net(source)", TARGET, "source.y"), "symnets: wanted two reads")
