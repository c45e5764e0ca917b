"""Threads of one process that play the ranks of a group: a sharded step without processes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ttransfer.dist._channel import register, unregister
from ttransfer.dist._ranks import Ranks

__all__ = ["run_ranks"]

_numbers = itertools.count()
_PATIENCE = 60.0  # seconds that a thread waits for the others


class _Meeting:
    """Where the threads meet."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.slots: list[Any] = [None] * size


class Thread:
    """The channel of one thread."""

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        self.rank, self.size, self._meeting = rank, size, meeting
        self.device = torch.device("cpu")

    def _all(self, value: Tensor) -> list[Tensor]:
        self._meeting.slots[self.rank] = value.clone()
        self._meeting.barrier.wait(_PATIENCE)
        found = list(self._meeting.slots)
        self._meeting.barrier.wait(_PATIENCE)
        return found

    def all_gather(self, out: Tensor, own: Tensor) -> None:
        out.copy_(torch.cat(self._all(own)))

    def all_reduce(self, values: list[Tensor]) -> None:
        for value in values:
            value.copy_(torch.stack(self._all(value)).sum(0))

    def reduce_scatter(self, out: Tensor, values: Tensor) -> None:
        out.copy_(torch.stack(self._all(values)).sum(0).chunk(self.size)[self.rank])

    def broadcast(self, value: Tensor, source: int) -> None:
        value.copy_(self._all(value)[source])


def run_ranks(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """Run a function on each of so many ranks, each in a thread.

    Nothing in it may draw from the global generator, which the threads share.

    Args:
        size: how many ranks.
        work: rank -> what it gives.

    Returns:
        What each gives.

    Raises:
        Exception: what the first rank to fail raised.
    """
    meeting = _Meeting(size)
    results: list[Any] = [None] * size
    errors: list[Exception | None] = [None] * size
    name = f"threads-{next(_numbers)}"

    def run(rank: int) -> None:
        group = f"{name}/{rank}"
        register(group, Thread(rank, size, meeting))
        try:
            results[rank] = work(Ranks(rank, size, group))
        except Exception as error:  # raised again below, by the thread that asked
            errors[rank] = error
            meeting.barrier.abort()
        finally:
            unregister(group)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    real = [e for e in errors if e is not None and not isinstance(e, threading.BrokenBarrierError)]
    for error in real or [e for e in errors if e is not None]:
        raise error
    return results
