"""Who failed: what a rank says of the others when an exchange with them breaks.

Every rank counts the exchanges it has begun, and a thread of it writes that count to the group's store once a second.
A rank that fails by an exception writes what it was. So when an exchange breaks, by a closed connection or by the
timeout, a rank can tell who failed, who is dead or stopped (its count is no longer written), and who is alive and has
not come.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any

from ttransfer._errors import TransferError

__all__ = ["Watch", "begun", "explained", "watched"]

_PERIOD = 1.0  # seconds between two writes
_NOTE = 400  # characters of an error that others are told


class Watch:
    """This rank's side of a store, on which it tells that it lives."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.broken = False
        self._store = store
        self._exchanges = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._live, name="ttransfer-watch", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Count an exchange."""
        self._exchanges += 1

    def _live(self) -> None:
        beat = 0
        while not self._done.is_set():
            try:
                self._store.set(f"ttransfer/beat/{self.rank}", f"{beat} {self._exchanges}")
            except Exception:  # the store's process is gone; who asks it next will say so
                return
            beat += 1
            self._done.wait(_PERIOD)

    def note(self, error: BaseException) -> None:
        """Tell the others what failed here, unless it is that another failed."""
        if self.broken:
            return
        self.broken = True
        text = "".join(traceback.format_exception_only(error)).strip()
        try:
            self._store.set(f"ttransfer/failed/{self.rank}", text[:_NOTE])
        except Exception:  # nobody is left to be told
            return

    def stop(self) -> None:
        """Stop telling."""
        self._done.set()

    def _read(self, kind: str) -> dict[int, str]:
        found: dict[int, str] = {}
        for rank in range(self.size):
            if rank != self.rank and self._store.check([f"ttransfer/{kind}/{rank}"]):
                found[rank] = self._store.get(f"ttransfer/{kind}/{rank}").decode()
        return found

    def blame(self) -> str:
        """Say who is the cause that an exchange broke."""
        try:
            before = self._read("beat")
            deadline = time.monotonic() + 3 * _PERIOD
            while not (failed := self._read("failed")) and time.monotonic() < deadline:
                time.sleep(_PERIOD / 10)
            after = self._read("beat")
        except Exception as error:  # the store lives in the process that torchrun, or else rank 0, is
            return f"the store of the group is gone, and with it the process that kept it ({_first(error)})"
        if failed:
            return "; ".join(f"rank {rank} failed: {text}" for rank, text in failed.items())
        still = [rank for rank in range(self.size) if rank != self.rank and before.get(rank) == after.get(rank)]
        if still:
            seen = ", ".join(f"rank {rank}" for rank in still)
            return (
                f"{seen} {'is' if len(still) == 1 else 'are'} dead or stopped: nothing was heard for {3 * _PERIOD:g} s"
            )
        counts = {rank: int(text.split()[1]) for rank, text in after.items()}
        late = [rank for rank, count in counts.items() if count < self._exchanges]
        if late:
            return "; ".join(
                f"rank {rank} is alive and has not come: it has begun {counts[rank]} exchanges, this rank "
                f"{self._exchanges}"
                for rank in late
            )
        return "all ranks are alive and have come; the network between them may be at fault"


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_watch: list[Watch] = []


def watched(store: Any, rank: int, size: int) -> Watch:
    """Begin to tell the others that this rank lives, and to tell them of an exception that ends it."""
    watch = Watch(store, rank, size)
    _watch[:] = [watch]
    hook = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        watch.note(error)
        hook(kind, error, where)

    sys.excepthook = tell
    atexit.register(watch.stop)
    return watch


def begun() -> None:
    """Count an exchange that this rank has begun."""
    for watch in _watch:
        watch.begin()


def explained(what: str, error: Exception) -> Exception:
    """Return the error to raise for an exchange that broke."""
    if not _watch:
        return error
    watch = _watch[0]
    blame = watch.blame()
    watch.note(error) if not blame.startswith("rank") else None
    watch.broken = True
    return TransferError(
        f"{what} on rank {watch.rank} of {watch.size} (process {os.getpid()}): {blame}. {_first(error)}"
    )
