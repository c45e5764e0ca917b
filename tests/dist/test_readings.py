"""What terms read on a rank."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ttransfer.dist._layout import Form, Layout
from ttransfer.dist._ranks import Ranks
from ttransfer.dist._readings import by_kind, counted_once, together_again

SPEC = pytree.tree_structure([0, 0])
LAYOUT = Layout(
    {"b": "it couples rows"},
    {},
    {"a": Form(SPEC, (True, False), (0, 1)), "b": Form(SPEC, (None, True), (0, 1))},
    frozenset(),
)


def test_kinds_are_told_apart_and_put_together_again() -> None:
    found = {"a": [torch.ones(2), torch.tensor([1, 2])], "b": [torch.zeros(3)]}
    floats, others = by_kind(LAYOUT, found)
    assert [x.shape[0] for x in floats] == [2, 3]
    again = together_again(LAYOUT, floats, others)
    assert all(a is b for name in found for a, b in zip(found[name], again[name], strict=True))


def test_what_every_rank_uses_whole_counts_once() -> None:
    ranks, p = Ranks(0, 4, "none"), torch.tensor([1.5, -2.0], dtype=torch.float64)

    def loss(p: Tensor, name: str) -> Tensor:
        return counted_once(LAYOUT, ranks, name, p).square().sum()

    assert torch.equal(counted_once(LAYOUT, ranks, "b", p), p)
    assert torch.equal(torch.func.grad(loss)(p, "b"), 2 * p / 4)
    assert torch.equal(torch.func.grad(loss)(p, "a"), 2 * p)
