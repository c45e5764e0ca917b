"""Threads that play ranks."""

from __future__ import annotations

import pytest
import torch

from ttransfer.dist._channel import channel
from ttransfer.dist._ranks import Ranks
from ttransfer.testing._threads import run_ranks


def test_they_exchange_as_processes_do() -> None:
    def work(ranks: Ranks) -> tuple[torch.Tensor, ...]:
        to, own = channel(ranks.group), torch.arange(3.0) + 10 * ranks.rank
        everything, part, value, total = torch.empty(9), torch.empty(1), own.clone(), own.clone()
        to.all_gather(everything, own)
        to.reduce_scatter(part, own)
        to.broadcast(value, 2)
        to.all_reduce([total])
        return everything, part, value, total

    for rank, (everything, part, value, total) in enumerate(run_ranks(3, work)):
        assert everything.tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
        assert part.tolist() == [30 + 3 * rank]
        assert value.tolist() == [20, 21, 22]
        assert total.tolist() == [30, 33, 36]


def test_what_one_raises_is_raised_and_the_others_do_not_wait() -> None:
    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            raise ValueError("no more")
        channel(ranks.group).all_reduce([torch.ones(1)])

    with pytest.raises(ValueError, match="no more"):
        run_ranks(3, work)
