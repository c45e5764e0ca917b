"""The Wasserstein game in one gradient and in phases: what each side gets, and that both forms agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ttransfer as tt
from tests.align.test_wdgrl import slow
from tests.support.games import normal, obeys, same_game
from tests.support.nets import mlp, vectors
from ttransfer.testing import Tags

READS = ("net(a)", "net(b)")
READINGS = [normal(0, 6, 4), normal(1, 3, 4), torch.arange(6) * 7 + 3]
CRITIC = tt.adapters.mlp(5)
Own = dict[str, Tensor]


def penalty(own: Own, source: Tensor, target: Tensor, keys: Tensor) -> Tensor:
    mixing = tt.uniform(keys, dtype=torch.float64)
    points = [*source, *target, *(e * source[i] + (1 - e) * target[i % len(target)] for i, e in enumerate(mixing))]
    total = source.new_zeros(())
    for h in points:
        slope = torch.func.grad(lambda h: CRITIC.apply(own, h[None]).sum())(h.detach())
        total = total + ((slope**2).sum().sqrt() - 1) ** 2
    return total / len(points)


def test_the_critic_learns_and_the_features_unlearn() -> None:
    term = tt.terms.wdgrl(*READS, critic=CRITIC)
    own, memory = term.init(torch.Generator().manual_seed(1), READINGS)

    def plain(own: Own, f: Tensor, g: Tensor, keys: Tensor) -> Tensor:
        steep = penalty(own, f, g, keys)
        return 3.0 * steep - slow(CRITIC.apply(own, f), CRITIC.apply(own, g))

    same_game(term, plain, READINGS, own=own, memory=memory, numbers={"penalty": 3.0})


def test_the_phases_have_the_gradients_of_the_one() -> None:
    one = tt.terms.wdgrl(*READS, critic=CRITIC)
    phases = tt.terms.wdgrl_phases(*READS, "critic:fn")
    own, _ = one.init(torch.Generator().manual_seed(1), READINGS)
    numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in (("penalty", 10.0), ("scale", 1.0))}

    def at(name: str, own: Own, source: Tensor) -> Tensor:
        reads: list[Any] = [source, *READINGS[1:]]
        if name == "one":
            return one.apply(own, {}, numbers, torch.tensor(0), reads)[0]
        reads.append(lambda x: CRITIC.apply(own, x))
        term = phases["critic"]["critic"] if name == "critic" else phases["features"]["distance"]
        return term.apply({}, {}, numbers, torch.tensor(0), reads if name == "critic" else [*reads[:2], reads[3]])[0]

    wanted = torch.func.grad(lambda own, x: at("one", own, x), argnums=(0, 1))(own, READINGS[0])
    critics = torch.func.grad(lambda own, x: at("critic", own, x), argnums=(0, 1))(own, READINGS[0])
    features = torch.func.grad(lambda x: at("features", own, x))(READINGS[0])
    torch.testing.assert_close(critics[0], wanted[0], rtol=1e-11, atol=1e-14)
    assert critics[1].count_nonzero() == 0
    torch.testing.assert_close(features, wanted[1], rtol=1e-11, atol=1e-14)


def test_a_line_for_a_critic_finds_the_distance_of_the_means_and_features_close_it() -> None:
    """Of slope a at most by d - 2 penalty (a - 1) = 0, where d is the distance of the means."""
    nets = {"net": tt.functional(mlp(1), mode="train"), "critic": tt.functional(nn.Linear(6, 1).double())}
    phases = tt.terms.wdgrl_phases("net(source).fc:in", "net(target).fc:in", "critic:fn")
    batch = vectors(0)
    critic = tt.step(nets, tt.optim.sgd(0.04), phases["critic"], trainable=("critic",))
    features = tt.step(nets, tt.optim.sgd(0.1), phases["features"], trainable=("net",))
    game = tt.alternate({"critic": critic, "features": features}, order=("critic",) * 250 + ("features",))
    state, logs = game(game.init(batch), batch)
    hidden = mlp(1).hidden
    means = [hidden(batch[d]["x"]).relu().mean(0) for d in ("source", "target")]
    d = (means[0] - means[1]).norm().item()
    assert logs["features.distance"].item() == pytest.approx(d * (1 + d / 20), rel=1e-2)
    _, after = game(state, batch)
    assert after["features.distance"] < 0.9 * logs["features.distance"]


def test_it_obeys_the_laws_of_terms() -> None:
    why = {
        "gradcheck": "the features' gradient is reversed on purpose",
    }
    # Each source row is mixed with a target row.
    obeys(tt.terms.wdgrl(*READS, critic=CRITIC), READINGS, why, Tags(row_symmetric=False))
