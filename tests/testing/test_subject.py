"""How laws draw a loss's arguments, call it, and write down what they saw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ttransfer as tt
from ttransfer.testing import Broken, loss_trial
from ttransfer.testing._subject import Inputs, drawn, for_all, show

KD = loss_trial(tt.losses.kd).subject
CORAL = loss_trial(tt.align.coral).subject


def collected(family: str, subject: object = KD, **options: object) -> list[Inputs]:
    found: list[Inputs] = []
    for_all(drawn(subject, family, **options), found.append, examples=60)  # type: ignore[arg-type]
    return found


def test_families_hold_what_they_say() -> None:
    extreme = [x for inputs in collected("extreme") for x in inputs]
    assert any(x.abs().max() >= 999 for x in extreme)
    assert any(bool((x == 0).all()) and len(x) > 1 for x in extreme)
    plain = [x for inputs in collected("moderate") for x in inputs]
    assert all(x.abs().max() <= 3 for x in plain)
    assert {len(x) for x in plain} >= {1, 2, 5}


def test_domains_are_of_unequal_size_and_obey_the_fewest() -> None:
    sizes = {(len(s), len(t)) for s, t in collected("generic", CORAL)}
    assert any(n != m for n, m in sizes)
    assert min(min(pair) for pair in sizes) == 2


def test_the_smallest_failing_input_is_kept() -> None:
    def test(inputs: Inputs) -> None:
        if inputs[0].sum() > 1:
            raise Broken(show(KD, inputs))

    with pytest.raises(Broken) as found:
        for_all(drawn(KD, "moderate"), test)
    assert str(found.value) == "student = [[0.0, 1.25]]\nteacher = [[0.0, 0.0]]"


def test_gradients_of_what_is_not_reached_are_zeros() -> None:
    value, grads = KD.gradients((torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])))
    assert value > 0
    assert grads[0].abs().sum() > 0
    assert grads[1].tolist() == [[0.0, 0.0]]


def test_what_a_loss_raises_is_told_with_its_input() -> None:
    with pytest.raises(Broken, match=r"it raised TransferError: kd: (.|\n)*student = \[\[0.0\]\]"):
        KD.call((torch.zeros(1, 1), torch.zeros(2, 1)))

    def pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return student, teacher

    with pytest.raises(Broken, match="it returned tuple, no 0-d tensor"):
        KD._replace(fn=pair).call((torch.zeros(1, 1), torch.zeros(1, 1)))
