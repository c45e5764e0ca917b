"""The adversary's gradient is its own, the features' is reversed, the classifier gets none."""

from __future__ import annotations

import torch
from torch import Tensor

import ttransfer as tt
from tests.align.test_mdd import slow
from tests.support.games import normal, obeys, same_game

READS = ("net(a).fc:in", "net(b).fc:in", "net(a)", "net(b)")
READINGS = [normal(0, 6, 4), normal(1, 3, 4), normal(2, 6, 3), normal(3, 3, 3)]
ADVERSARY = tt.adapters.mlp(5, out=3)


def test_the_adversary_learns_and_the_features_unlearn() -> None:
    term = tt.terms.mdd(*READS, adversary=ADVERSARY)
    own, memory = term.init(torch.Generator().manual_seed(1), READINGS)

    def plain(own: dict[str, Tensor], f: Tensor, g: Tensor, z: Tensor, y: Tensor) -> Tensor:
        return slow(z, y, ADVERSARY.apply(own, f), ADVERSARY.apply(own, g), 2.5)

    same_game(term, plain, READINGS, own=own, memory=memory, numbers={"gamma": 2.5}, still=(2, 3))


def test_it_obeys_the_laws_of_terms() -> None:
    why = {
        "gradcheck": "the features' gradient is reversed on purpose",
        "gradient": "predicted classes are held constant",
    }
    obeys(tt.terms.mdd(*READS, adversary=ADVERSARY), READINGS, why)
