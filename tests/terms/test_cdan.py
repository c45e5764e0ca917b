"""The sign and the scale of the conditional game, in both variants, with all products and with random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ttransfer as tt
from tests.support.games import normal, obeys, same_game
from tests.support.nets import mlp, vectors
from tests.support.steps import refused

READS = ("net(a).fc:in", "net(b).fc:in", "net(a)", "net(b)")
READINGS = [normal(0, 6, 4), normal(1, 3, 4), normal(2, 6, 3), normal(3, 3, 3)]
CRITIC = tt.adapters.mlp(5)
Own = dict[str, Tensor]


def entropy(z: Tensor) -> Tensor:
    p = z.softmax(1)
    return -(p * p.log()).sum(1)


def plain(weighted: bool, variant: str, memory: Own) -> Callable[..., Tensor]:
    """What the critic minimises, row by row."""

    def loss(own: Own, f: Tensor, g: Tensor, z: Tensor, y: Tensor) -> Tensor:
        total = f.new_zeros(())
        for features, logits, label in ((f, z, 1.0), (g, y, 0.0)):
            w = 1 + (-entropy(logits)).exp() if weighted else torch.ones(len(logits), dtype=f.dtype)
            w = w / w.detach().mean() if variant == "code" else w
            for x, scores, weight in zip(features, logits, w, strict=True):
                p = scores.softmax(0).detach() if variant == "code" else scores.softmax(0)
                if memory:
                    h = torch.stack(
                        [
                            (x @ left) * (p @ right)
                            for left, right in zip(memory["left"].T, memory["right"].T, strict=True)
                        ]
                    )
                    h = h / len(h) ** 0.5
                else:
                    h = torch.outer(x, p).flatten()
                out = CRITIC.apply(own, h[None])
                total = (
                    total
                    + weight
                    * F.binary_cross_entropy_with_logits(out, out.new_full((1, 1), label))
                    / len(f if label else g)
                    / 2
                )
        return total

    return loss


@pytest.mark.parametrize("random", [None, 7])
@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("make", [tt.terms.cdan, tt.terms.cdan_e])
def test_the_critic_learns_and_the_features_unlearn(make: Any, variant: Any, random: int | None) -> None:
    term = make(*READS, critic=CRITIC, random=random, variant=variant)
    own, memory = term.init(torch.Generator().manual_seed(1), READINGS)
    assert own["0.weight"].shape == (5, random or 12)
    assert {k: x.shape for k, x in memory.items()} == ({"left": (4, 7), "right": (3, 7)} if random else {})
    same_game(term, plain(make is tt.terms.cdan_e, variant, memory), READINGS, own=own, memory=memory)


def test_predictions_are_left_alone_but_for_their_weights() -> None:
    for make, moves in ((tt.terms.cdan, False), (tt.terms.cdan_e, True)):
        term = make(*READS, critic=CRITIC)
        own, memory = term.init(torch.Generator().manual_seed(1), READINGS)
        numbers = {"scale": torch.tensor(1.0)}

        def value(z: Tensor, term: tt.Term = term, own: Own = own, memory: Own = memory, n: Own = numbers) -> Tensor:
            return term.apply(own, memory, n, torch.tensor(0), [*READINGS[:2], z, READINGS[3]])[0]

        assert bool(torch.func.grad(value)(READINGS[2]).any()) == moves


def test_random_matrices_stay_and_members_have_their_own() -> None:
    nets = {"net": tt.functional(mlp(1))}
    reads = [read.replace("(a)", "(source)").replace("(b)", "(target)") for read in READS]
    step = tt.step(
        nets, tt.optim.sgd(0.1), trainable=("net",), c=tt.terms.cdan(*reads, critic=CRITIC, random=4, scale=0.5)
    )
    many = tt.ensemble(step, 2)
    state = many.init(vectors(0), seed=0)
    new, _ = many(state, vectors(0))
    assert torch.equal(new.terms["c"]["left"], state.terms["c"]["left"])
    assert not torch.equal(*state.terms["c"]["left"])
    one, _ = step(tt.member(state, 1), vectors(0))
    assert torch.allclose(tt.member(new, 1).trainable["net"]["fc.weight"], one.trainable["net"]["fc.weight"])


def test_they_obey_the_laws_of_terms() -> None:
    why = {
        "gradcheck": "the features' gradient is reversed on purpose",
        "state-moves": "the random matrices are drawn once and kept",
    }
    obeys(tt.terms.cdan_e(*READS, critic=CRITIC, random=4), READINGS, why)


def test_what_they_refuse() -> None:
    refused(lambda: tt.terms.cdan(*READS, critic=CRITIC, random=0), "cdan: wanted at least 1 random product")
    refused(lambda: tt.terms.cdan_e(*READS, critic=CRITIC, variant="other"), "cdan_e: wanted variant")  # pyright: ignore[reportArgumentType]
