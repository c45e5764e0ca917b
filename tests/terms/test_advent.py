"""The two phases of AdvEnt are the loop; in one gradient it is `dann` of piped reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.nets import Batch, images
from tests.support.steps import refused


def make(seed: int, into: int, out: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv2d(into, out, 3).double()


def information(z: Tensor, by: float) -> Tensor:
    p = z.softmax(1)
    return -p * p.log() / by


def by_hand(batch: Batch, by: float) -> list[nn.Module]:
    net, critic = make(1, 1, 3), make(2, 3, 1)
    for phase in ("critic", "net"):
        s, t = (critic(information(net(batch[d]["x"]), by)) for d in ("source", "target"))
        if phase == "critic":
            bce = F.binary_cross_entropy_with_logits
            loss = (bce(s, torch.ones_like(s)) + bce(t, torch.zeros_like(t))) / 2
        else:
            loss = 0.3 * F.binary_cross_entropy_with_logits(t, torch.ones_like(t))
        trained = [*(critic if phase == "critic" else net).parameters()]
        grads = torch.autograd.grad(loss, trained)
        with torch.no_grad():
            for p, g in zip(trained, grads, strict=True):
                p -= g
    return [net, critic]


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_it_is_the_loop(variant: str) -> None:
    nets = {"net": tt.functional(make(1, 1, 3)), "critic": tt.functional(make(2, 3, 1))}
    phases = tt.terms.advent("net(source)", "net(target)", "critic:fn", weight=0.3, variant=variant)  # pyright: ignore[reportArgumentType]
    trains = {"critic": "critic", "encoder": "net"}
    game = tt.alternate({n: tt.step(nets, tt.optim.sgd(1.0), phases[n], trainable=(trains[n],)) for n in phases})
    batch = images(0)
    state, _ = game(game.init(batch), batch)
    net, critic = by_hand(batch, 1.0 if variant == "paper" else torch.tensor(3.0).double().log().item())
    for name, module in (("net", net), ("critic", critic)):
        for key, p in module.named_parameters():
            assert torch.allclose(state.trainable[name][key], p, rtol=1e-11, atol=1e-14)


def test_in_one_gradient_it_is_dann() -> None:
    reads = [tt.read(f"net({d})") | tt.align.self_information for d in ("source", "target")]
    nets = {"net": tt.functional(make(1, 1, 3))}
    step = tt.step(nets, tt.optim.sgd(1.0), trainable=("net",), d=tt.terms.dann(*reads, critic=tt.adapters.conv(4, 1)))
    _, logs = step(step.init(images(0)), images(0))
    assert logs["finite"]
    assert tt.citation(step).count("ADVENT") == 0


def test_it_is_cited_and_refuses() -> None:
    nets = {"net": tt.functional(make(1, 1, 3)), "critic": tt.functional(make(2, 3, 1))}
    phases = tt.terms.advent("net(source)", "net(target)", "critic:fn")
    assert "ADVENT" in tt.citation(tt.step(nets, tt.optim.sgd(1.0), phases["encoder"], trainable=("net",)))
    refused(lambda: tt.terms.advent("net(a)", "net(b)", "c:fn", variant="x"), "advent: wanted variant")  # pyright: ignore[reportArgumentType]
