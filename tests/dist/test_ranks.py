"""What ranks tell each other before a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ttransfer as tt
from ttransfer.core._transforms import SHARDS, TOTALS
from ttransfer.dist._ranks import Ranks, agreed, any_of, rows_of_domains, with_rows
from ttransfer.testing._threads import run_ranks

CPU = torch.device("cpu")


def test_every_rank_learns_all_numbers_of_rows() -> None:
    def work(ranks: Ranks) -> Any:
        batch = {"a": {"x": torch.zeros(2 + ranks.rank, 1)}, "b": {"x": torch.zeros(1, 1)}}
        checked, table = agreed(ranks, ("a", "b"), batch, 0, lambda: batch)
        prepared = with_rows(ranks, checked, ("a", "b"), table, CPU)
        return table, prepared, rows_of_domains(prepared, {"a": 2 + ranks.rank, "b": 1})

    for rank, (table, prepared, rows) in enumerate(run_ranks(3, work)):
        assert table == [[2, 1], [3, 1], [4, 1]]
        assert prepared[SHARDS]["counts"].tolist() == [[2, 3, 4], [1, 1, 1], [1, 1, 1]]
        assert prepared[TOTALS]["a"].shape == (9, 0)
        assert (rows["a"].own, rows["a"].total, int(rows["a"].start)) == (2 + rank, 9, [0, 2, 5][rank])
        assert float(rows["a"].share) == (2 + rank) / 9
        assert (rows[""].total, int(rows[""].start)) == (3, rank)


def test_a_domain_that_a_phase_does_not_read_is_left_out() -> None:
    prepared = with_rows(Ranks(0, 1, "none"), {}, ("a", "b"), [[2, 5]], CPU)
    rows = rows_of_domains(prepared, {"b": 5})
    assert set(rows) == {"b", ""}
    assert rows["b"].total == 5


def test_rows_of_members_are_counted_behind_the_members() -> None:
    batch = {"a": {"x": torch.zeros(7, 3, 1)}}
    _, table = agreed(Ranks(0, 1, "none"), ("a",), batch, 1, lambda: batch)
    assert table == [[3]]


@pytest.mark.parametrize("bad", [None, {}, {"a": None}, {"a": {}}, {"a": {"x": torch.tensor(1.0)}}])
def test_a_batch_that_is_none_is_the_checks_to_name(bad: Any) -> None:
    def check() -> Any:
        raise tt.TransferError("it is none")

    with pytest.raises(tt.TransferError, match="it is none"):
        agreed(Ranks(0, 1, "none"), ("a",), bad, 0, check)


def test_whether_something_is_so_on_any_rank() -> None:
    assert run_ranks(3, lambda ranks: any_of(ranks, ranks.rank == 2)) == [True] * 3
    assert run_ranks(3, lambda ranks: any_of(ranks, False)) == [False] * 3
