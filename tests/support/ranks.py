"""Threads of one process that play the ranks of a group."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ttransfer.dist._channel import register, unregister
from ttransfer.dist._ranks import Ranks

_numbers = itertools.count()


class _Meeting:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.slots: list[Any] = [None] * size


class Thread:
    """The channel of one thread."""

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        self.rank, self.size, self._meeting = rank, size, meeting

    def _all(self, value: Tensor) -> list[Tensor]:
        self._meeting.slots[self.rank] = value.clone()
        self._meeting.barrier.wait(60)
        found = list(self._meeting.slots)
        self._meeting.barrier.wait(60)
        return found

    def all_gather(self, out: Tensor, own: Tensor) -> None:
        out.copy_(torch.cat(self._all(own)))

    def all_reduce(self, values: list[Tensor]) -> None:
        for value in values:
            value.copy_(sum(self._all(value)))  # type: ignore[arg-type]

    def reduce_scatter(self, out: Tensor, values: Tensor) -> None:
        total: Any = sum(self._all(values))
        out.copy_(total.chunk(self.size)[self.rank])

    def broadcast(self, value: Tensor, source: int) -> None:
        value.copy_(self._all(value)[source])


def run_ranks(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """Run `work` on each rank; return what each gives, or raise what the first to fail raised."""
    meeting = _Meeting(size)
    results: list[Any] = [None] * size
    errors: list[BaseException | None] = [None] * size
    name = f"threads-{next(_numbers)}"

    def run(rank: int) -> None:
        group = f"{name}/{rank}"
        register(group, Thread(rank, size, meeting))
        try:
            results[rank] = work(Ranks(rank, size, group))
        except BaseException as error:
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
