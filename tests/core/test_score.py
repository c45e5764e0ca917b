"""The losses on what they read."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import ttransfer as tt
from tests.support.steps import small_step
from ttransfer.core._score import score, total_of

ZERO = torch.zeros((), dtype=torch.int64)
X = torch.tensor([[1.0, 2.0], [3.0, 5.0]])


def mean(x: Tensor) -> Tensor:
    return x.mean()


def running(x: Tensor, *, state: Any) -> tuple[Tensor, Any]:
    new = {"sum": state["sum"] + x.sum()}
    return new["sum"] * 1.0, new


def scored(terms: Any, shares: Any = None, memory: Any = None) -> Any:
    expression = small_step(terms).spec.expression
    numbers = {f"{name}.weight": torch.tensor(3.0, dtype=torch.float64) for name in terms}
    return score(expression, {}, memory or {}, numbers, ZERO, {name: [X] for name in terms}, shares or {})


def test_the_total_is_weighed_and_values_are_not() -> None:
    found = scored({"a": tt.term(mean, "student(source)"), "b": tt.term(mean, "student(source)", weight=tt.fixed(2.0))})
    assert found.values == {"a": torch.tensor(2.75), "b": torch.tensor(2.75)}
    assert found.total == 6 * 2.75
    assert found.total.dtype == torch.float32


def test_a_part_of_a_mean_counts_by_its_share() -> None:
    half = torch.tensor(0.5, dtype=torch.float64)
    assert scored({"a": tt.term(mean, "student(source)")}, {"a": half}).values["a"] == 1.375


def test_a_part_that_holds_nothing_of_a_mean_counts_nothing_though_it_is_no_number() -> None:
    term = tt.term(lambda x: x.mean() * math.nan, "student(source)")
    assert scored({"a": term}, {"a": torch.tensor(0.0)}).total == 0


def test_what_a_term_remembers_has_no_gradient() -> None:
    term = tt.term(running, "student(source)", state=lambda generator, x: {"sum": torch.zeros(())})
    expression = small_step({"a": term}).spec.expression

    def loss(x: Tensor) -> tuple[Tensor, Tensor]:
        memory = {"a": {"sum": torch.zeros(())}}
        found = score(expression, {}, memory, {"a.weight": torch.ones(())}, ZERO, {"a": [x]}, {})
        return found.total, found.memory["a"]["sum"]

    grad, kept = torch.func.grad(loss, has_aux=True)(X)
    assert torch.equal(grad, torch.ones_like(X))
    assert kept == 11


def test_the_sum_of_one_is_that_one() -> None:
    one = torch.tensor(2.0)
    assert total_of([one]) is one
    assert total_of([one, one]) == 4
