"""What is cited for a step."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import ttransfer as tt
from tests.support.nets import mlp
from tests.support.steps import refused, small_step

NETS = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
KD = tt.term(tt.losses.kd, "student(source)", "teacher(source)")
DANN = tt.terms.dann("student(source).fc:in", "student(target).fc:in", critic=tt.adapters.mlp(4))


def own(logits: Tensor) -> Tensor:
    """Spread.

    References:
        Ann Lee. Spreading. 2030.
    """
    return logits.square().mean()


def test_each_paper_once_in_the_order_of_the_terms() -> None:
    step = small_step({"own": tt.term(own, "student(source)"), "dann": DANN, "kd": KD, "more": KD}, NETS)
    entries = tt.citation(step).split("\n\n")
    assert [entry.splitlines()[0] for entry in entries] == [
        "@misc{lee2030spreading,",
        "@misc{ganin2015unsupervised,",
        "@misc{ganin2016domain,",
        "@misc{hinton2015distilling,",
    ]


def test_of_games_and_of_what_was_done_to_a_step() -> None:
    game = tt.alternate(a=small_step({"kd": KD}, NETS), b=small_step({"dann": DANN}, NETS))
    text = tt.citation(tt.compile(tt.ensemble(game, 2), backend="eager"))
    assert [text.count(key) for key in ("hinton2015", "ganin2015")] == [1, 1]


def test_a_step_without_sources() -> None:
    assert tt.citation(small_step({"plain": tt.term(torch.mean, "student(source)")}, NETS)) == ""


def test_of_a_term_and_of_a_loss() -> None:
    assert tt.citation(KD).startswith("@misc{hinton2015distilling,")
    assert tt.citation(DANN).count("@misc") == 2
    assert tt.citation(functools.partial(tt.losses.kd, temperature=2.0)) == tt.citation(tt.losses.kd) == tt.citation(KD)
    refused(lambda: tt.citation("kd"), "citation: wanted a step, a term or a loss, got str")  # pyright: ignore[reportArgumentType]
