"""Games in two phases against imperative loops, and beside the game in one gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.nets import vectors

BCE = F.binary_cross_entropy_with_logits


def make(seed: int, out: int, width: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, out)).double()


def nets() -> dict[str, nn.Module]:
    return {"old": make(1, 3), "new": make(2, 3), "critic": make(3, 1, 3)}


def told(critic: nn.Module, s: Tensor, t: Tensor) -> Tensor:
    real, fake = critic(s), critic(t)
    return (BCE(real, torch.ones_like(real)) + BCE(fake, torch.zeros_like(fake))) / 2


def by_hand(phases: list[tuple[str, Callable[..., Tensor]]]) -> dict[str, nn.Module]:
    own = nets()
    batch = vectors(0)
    for trained, loss in phases:
        parameters = [*own[trained].parameters()]
        grads = torch.autograd.grad(loss(own, batch["source"]["x"], batch["target"]["x"]), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, grads, strict=True):
                p -= 0.1 * g
    return own


def played(phases: dict[str, dict[str, tt.Term]], trains: dict[str, str], order: tuple[str, ...]) -> tt.State:
    own = {name: tt.functional(net, mode="train") for name, net in nets().items()}
    steps = {n: tt.step(own, tt.optim.sgd(0.1), phases[n], trainable=(trains[n],)) for n in phases}
    game = tt.alternate(steps, order=order)
    return game(game.init(vectors(0)), vectors(0))[0]


def gap(state: tt.State, own: dict[str, nn.Module]) -> float:
    flat = {**state.frozen, **state.trainable}
    pairs = [(flat[n][k], p) for n, net in own.items() for k, p in net.named_parameters()]
    return max((a - b).abs().max().item() for a, b in pairs)


def test_adda_is_the_loop() -> None:
    phases = tt.terms.adda("old(source)", "new(target)", "critic:fn", weight=0.7)
    state = played(phases, {"critic": "critic", "encoder": "new"}, ("critic", "critic", "encoder"))

    def tell(own: Any, s: Tensor, t: Tensor) -> Tensor:
        return told(own["critic"], own["old"](s), own["new"](t))

    def fool(own: Any, s: Tensor, t: Tensor) -> Tensor:
        out = own["critic"](own["new"](t))
        return 0.7 * BCE(out, torch.ones_like(out))

    assert gap(state, by_hand([("critic", tell), ("critic", tell), ("new", fool)])) < 1e-12


def test_domain_confusion_is_the_loop() -> None:
    phases = tt.terms.domain_confusion("new(source)", "new(target)", "critic:fn", weight=0.01)
    state = played(phases, {"critic": "critic", "features": "new"}, ("critic", "features"))

    def tell(own: Any, s: Tensor, t: Tensor) -> Tensor:
        return told(own["critic"], own["new"](s), own["new"](t))

    def confuse(own: Any, s: Tensor, t: Tensor) -> Tensor:
        out = [own["critic"](own["new"](x)) for x in (s, t)]
        return 0.01 * sum((BCE(z, torch.full_like(z, 0.5)) for z in out), torch.zeros(())) / 2

    assert gap(state, by_hand([("critic", tell), ("new", confuse)])) < 1e-12


def test_the_critic_of_a_phase_learns_what_the_critic_of_one_gradient_does() -> None:
    """And features that maximise its loss in a phase of their own get the reversed gradient."""
    source, target = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    critic = tt.adapters.mlp(4)
    one = tt.terms.dann("new(source)", "new(target)", critic=critic)
    two = tt.terms.adda("old(source)", "new(target)", "critic:fn")["critic"]["critic"]
    own = critic.init(torch.Generator().manual_seed(1), source)
    numbers = {"scale": torch.tensor(1.0, dtype=torch.float64)}

    def at(term: tt.Term, own: dict[str, Tensor], source: Tensor) -> Tensor:
        reads: list[Any] = [source, target]
        if term is two:
            return term.apply({}, {}, {}, torch.tensor(0), [*reads, lambda x: critic.apply(own, x)])[0]
        return term.apply(own, {}, numbers, torch.tensor(0), reads)[0]

    grads = [torch.func.grad(lambda own, term=term: at(term, own, source))(own) for term in (one, two)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=0)
    assert torch.func.grad(lambda x: at(two, own, x))(source).count_nonzero() == 0
    against = torch.func.grad(lambda x: -tt.align.domain_adversarial(critic.apply(own, x), critic.apply(own, target)))(
        source
    )
    assert torch.allclose(torch.func.grad(lambda x: at(one, own, x))(source), against, rtol=1e-12)


@pytest.mark.parametrize("make_phases", [tt.terms.adda, tt.terms.domain_confusion])
def test_weights_are_of_the_features_alone(make_phases: Any) -> None:
    phases = make_phases("old(source)", "new(target)", "critic:fn", weight=0.3)
    weights = [term.hyper["weight"] for terms in phases.values() for term in terms.values()]
    assert weights == [1.0, 0.3]
