"""Adapter, Reparam and WeightMap are values to call, not to compare."""

from __future__ import annotations

import torch

import ttransfer as tt


def test_pairs_of_functions_compare_as_tuples() -> None:
    """Which is why nothing in the library compares, hashes or maps over them."""

    def init(*_: object) -> dict[str, torch.Tensor]:
        return {}

    def apply(first: dict[str, torch.Tensor], _: object) -> dict[str, torch.Tensor]:
        return first

    assert tt.WeightMap(apply, init) == (apply, init)
    assert tt.Reparam(init, apply).trains_base is False


def test_a_reparam_that_trains_its_base_leaves_it_trainable() -> None:
    def shift(trains_base: bool) -> tt.Reparam:
        return tt.Reparam(
            lambda g, p: {"by": torch.zeros((), dtype=torch.float64)},
            lambda base, delta: {name: x + delta["by"] for name, x in base.items()},
            trains_base,
        )

    net = tt.functional(torch.nn.Linear(2, 2).double())
    names = {"weight", "bias"}
    assert tt.reparam(net, shift(False)).layout.frozen == names
    assert tt.reparam(net, shift(True)).layout.frozen == frozenset()
