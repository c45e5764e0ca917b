"""A game in one gradient: the critic's is its own, the features' is reversed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import ttransfer as tt
from ttransfer.testing import Tags, term_trial
from ttransfer.testing._law import demand

__all__ = ["normal", "obeys", "same_game"]


def normal(seed: int, *shape: int) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same_game(
    term: tt.Term,
    plain: Callable[..., Tensor],
    readings: Sequence[Any],
    *,
    own: Mapping[str, Tensor],
    memory: Any = None,
    numbers: Mapping[str, float] | None = None,
    still: Sequence[int] = (),
    scales: Sequence[float] = (0.0, 0.3, 2.0),
) -> None:
    """Compare a term with what its critic minimises.

    Args:
        term: made for any scale.
        plain: (own, *readings) -> what the critic minimises, without any reversal.
        readings: of the term; those of floats get gradients.
        own: the term's parameters, which get the gradient of `plain`.
        memory: the term's state.
        numbers: its other numbers.
        still: positions of readings that get no gradient; all others get -scale times that of `plain`.
        scales: tried in turn.
    """
    where = [i for i, x in enumerate(readings) if isinstance(x, Tensor) and x.is_floating_point()]

    def at(loss: Callable[..., Tensor]) -> tuple[Any, Tensor]:
        def of(own: Mapping[str, Tensor], floats: list[Tensor]) -> Tensor:
            whole = list(readings)
            for i, x in zip(where, floats, strict=True):
                whole[i] = x
            return loss(own, whole)

        return torch.func.grad_and_value(of, argnums=(0, 1))(dict(own), [readings[i] for i in where])

    (true_own, true), wanted = at(lambda own, whole: plain(own, *whole))
    for scale in scales:
        hyper = {k: torch.tensor(v, dtype=torch.float64) for k, v in {**(numbers or {}), "scale": scale}.items()}
        (mine_own, mine), found = at(
            lambda own, whole, hyper=hyper: term.apply(own, memory, hyper, torch.tensor(0), whole)[0]
        )
        assert found.item() == pytest.approx(wanted.item(), rel=1e-11, abs=1e-15)
        torch.testing.assert_close(mine_own, true_own, rtol=1e-9, atol=1e-13)
        for i, got, gradient in zip(where, mine, true, strict=True):
            by = 0.0 if i in still else -scale
            torch.testing.assert_close(got, by * gradient, rtol=1e-9, atol=1e-13, msg=lambda m, i=i: f"{i}: {m}")


def obeys(term: tt.Term, readings: Sequence[Any], why: Mapping[str, str], tags: Tags | None = None) -> None:
    """Judge a term by its laws, compiled once: as a step, which has its loss inside."""
    low = pytree.tree_map(
        lambda x: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x, tuple(readings)
    )
    trial = term_trial(term, low, tags=tags, expected_failed_checks=why, examples=4)
    laws = [law.name for law in trial.laws if law.name not in ("one-graph", "compiled-vmap")]
    assert not demand(trial, laws).failed
