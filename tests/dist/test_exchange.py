"""Rows put together, taken apart, and summed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.steps import small_step
from ttransfer.core._spec import plan_of
from ttransfer.dist._exchange import own_rows, summed, together
from ttransfer.dist._layout import layout_of
from ttransfer.dist._ranks import Ranks, rows_of_domains, with_rows
from ttransfer.testing._threads import run_ranks

CPU = torch.device("cpu")


def test_gathered_terms_see_all_rows_and_counts_are_added() -> None:
    terms = {
        "task": tt.term(F.cross_entropy, "student(source)", "source.y"),
        "mmd": tt.term(tt.align.mmd, "student(source)", "student(target)"),
    }
    step, batch = small_step(terms, {"student": tt.functional(mlp(1))}), vectors(0)
    layout = layout_of(step.spec.expression, plan_of(step.spec.expression), step.init(batch), batch)
    source, target, labels = torch.randn(6, 3), torch.randn(4, 3), batch["source"]["y"]
    table = [[4, 1], [2, 3]]

    def work(ranks: Ranks) -> Any:
        a, b = (slice(0, 4), slice(0, 1)) if ranks.rank == 0 else (slice(4, 6), slice(1, 4))
        prepared = with_rows(ranks, {}, ("source", "target"), table, CPU)
        rows = rows_of_domains(prepared, dict(zip(("source", "target"), table[ranks.rank], strict=True)))
        local = {"task": [source[a], labels[a]], "mmd": [source[a], target[b]]}
        counts = {"task": torch.tensor(4.0 if ranks.rank == 0 else 1.0, dtype=torch.float64)}
        seen, totals = together(ranks, step.spec.expression, layout, prepared, rows, local, counts)
        return local, seen, totals, own_rows(step.spec.expression, layout, rows, local, seen)

    for local, seen, totals, mine in run_ranks(2, work):
        assert totals["task"] == 5
        assert all(map(torch.equal, seen["task"], local["task"]))
        assert all(map(torch.equal, seen["mmd"], [source, target]))
        assert all(torch.equal(a, b) for name in local for a, b in zip(mine[name], local[name], strict=True))


def test_sums_keep_order_shape_and_dtype() -> None:
    tensors = [
        torch.ones(2, 3),
        torch.ones((), dtype=torch.float64),
        torch.arange(4.0),
        torch.ones(1, dtype=torch.float64),
    ]

    def work(ranks: Ranks) -> list[torch.Tensor]:
        return summed(ranks, [x * (ranks.rank + 1) for x in tensors])

    for found in run_ranks(3, work):
        for x, total in zip(tensors, found, strict=True):
            assert total.dtype == x.dtype
            assert torch.equal(total, 6 * x)
