"""Who failed: what a rank says of the others when an exchange with them breaks.

Every rank counts the exchanges it has begun, and a thread of it writes that count to the group's store once a second.
A rank that fails by an exception writes what it was, and one that ends writes that. So when an exchange breaks, by a
closed connection or by the timeout, a rank can tell who failed, who has ended, who is dead or stopped (its count is no
longer written), and who is alive and has not come. The first to find out writes it down for all: those who break later
see ranks that ended because of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from ttransfer._errors import TransferError

__all__ = ["Watch", "exchanging", "watched"]

_PERIOD = 1.0  # seconds between two writes
_SILENCE = 3 * _PERIOD  # after which a rank that writes nothing is dead or stopped
_SETTLING = 0.5 * _PERIOD  # in which the store takes what a rank wrote before it died
_NOTE = 400  # characters of an error that others are told
_CAUSE = "cause"


class Watch:
    """This rank's side of a store, on which it tells that it lives.

    Attributes:
        rank: this process's.
        size: how many there are.
        broken: whether the group can be used no more, as far as this rank knows.
        waiting: whether an exchange is under way.
        signal: what came during it and is to end this process.
        keeps: whether the store lives in this process.
    """

    def __init__(self, store: Any, rank: int, size: int, keeper: int | None) -> None:
        self.rank, self.size = rank, size
        self.keeps = keeper == rank
        self.broken = self.waiting = False
        self.signal: int | None = None
        self.owner = os.getpid()  # a fork has a copy of this object, and none of its thread
        self._store, self._keeper = store, keeper
        self._exchanges = 0
        self._cause = ""
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._live, name="ttransfer-watch", daemon=True)]
        self._threads[0].start()

    def begin(self) -> None:
        """Count an exchange.

        Raises:
            TransferError: if an earlier one broke.
        """
        if self.broken:
            raise TransferError(f"the group of rank {self.rank} of {self.size} is broken: {self._cause}")
        self._exchanges += 1
        self.waiting = True

    def finish(self) -> None:
        """End an exchange, and obey a signal that came during it."""
        self.waiting = False
        if self.signal is not None and not self.broken:
            signal.raise_signal(self.signal)

    def fail(self, error: BaseException) -> None:
        """Tell the others what failed here, unless it is that another failed."""
        if not self.broken:
            self.broken = True
            text = "".join(traceback.format_exception_only(error)).strip()
            self._bounded(lambda: self._claim(f"rank {self.rank} failed: {text[:_NOTE]}"))

    def end(self, how: str) -> None:
        """Tell the others that this process ends without a failure that it knows of."""
        self._bounded(lambda: self._store.set(f"end/{self.rank}", how))

    def stop(self) -> bool:
        """Stop telling that this rank lives; return whether no thread of this waits for the store any more."""
        self._done.set()
        deadline = time.monotonic() + _SILENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def linger(self) -> None:
        """Keep the store a little longer for others that are about to ask it who failed."""
        time.sleep(_SILENCE if self.keeps else 0.0)

    def blame(self, ranks: Collection[int] | None = None) -> str:
        """Say who is the cause that an exchange of some ranks, or of all, broke."""
        self.broken = True
        self._cause = self._cause or self._bounded(lambda: self._find(range(self.size) if ranks is None else ranks))
        return self._cause

    def other_cause(self) -> str:
        """Say which rank failed, if one did: who ends this process may do so because of that."""
        return self._cause or self._bounded(self._find_other)

    def _live(self) -> None:
        beat = 0
        while not self._done.is_set():
            try:
                self._store.set(f"beat/{self.rank}", f"{beat} {self._exchanges}")
                if not self._cause and self._store.check([_CAUSE]):
                    self._cause = self._store.get(_CAUSE).decode()  # the store may go before the exchange breaks
            except Exception:  # the store is gone; who asks it next will say so
                return
            beat += 1
            self._done.wait(_PERIOD)

    def _bounded(self, ask: Callable[[], Any]) -> str:
        """Ask the store, which would keep us waiting for ever if the process that has it were stopped."""
        found: list[str] = []

        def work() -> None:
            try:
                found.append(str(ask()))
            except Exception as error:
                found.append(self._cause or f"{self._keepers_name()} is gone ({_first(error)})")

        thread = threading.Thread(target=work, name="ttransfer-ask", daemon=True)
        thread.start()
        self._threads.append(thread)
        thread.join(_SETTLING + 2 * _SILENCE)
        return found[0] if found else f"{self._keepers_name()} does not answer"

    def _keepers_name(self) -> str:
        kept = "torchrun" if self._keeper is None else f"rank {self._keeper}"
        return f"{kept}, whose process keeps the store of the group,"

    def _claim(self, cause: str) -> str:
        """Write a cause down for all, unless there is one; return that which is there."""
        return self._store.compare_set(_CAUSE, "", cause).decode()

    def _read(self, kind: str) -> dict[int, str]:
        keys = {rank: f"{kind}/{rank}" for rank in range(self.size) if rank != self.rank}
        return {rank: self._store.get(key).decode() for rank, key in keys.items() if self._store.check([key])}

    def _find(self, ranks: Collection[int]) -> str:
        """Find out who made an exchange of these ranks break."""

        def known() -> str | None:
            ended = [rank for rank, how in self._read("end").items() if not how]
            return f"{_ranks(ended)} came to the end of the program before this exchange" if ended else None

        if (found := self._heard(known)) is not None:
            return found
        # Launchers end the others when one has died, so that this is a cause only if there is no other.
        if terminated := self._read("end"):
            return self._claim("; ".join(f"rank {rank} was ended {how}" for rank, how in terminated.items()))
        counts = {rank: int(text.split()[1]) for rank, text in self._read("beat").items()}
        if late := [rank for rank, count in counts.items() if rank in ranks and count < self._exchanges]:
            told = f"rank {late[0]} has begun {counts[late[0]]} exchanges, and rank {self.rank} {self._exchanges}"
            return self._claim(f"{_ranks(late)} did not come, and {'lives' if len(late) == 1 else 'live'}: {told}")
        return self._claim("all ranks are alive and have come; the network between them may be at fault")

    def _find_other(self) -> str:
        """Find out whether another rank failed; "" if all end alike."""
        return self._heard(lambda: "" if len(self._read("end")) == self.size - 1 else None) or ""

    def _heard(self, known: Callable[[], str | None]) -> str | None:
        """Listen for the cause until one is known, or until those who are dead have been silent for long enough."""
        begun, before = time.monotonic(), {}
        while (elapsed := time.monotonic() - begun) < _SETTLING + _SILENCE:
            if self._store.check([_CAUSE]):
                return self._store.get(_CAUSE).decode()
            if (found := known()) is not None:
                return self._claim(found) if found else found
            if not before and elapsed > _SETTLING:
                before = self._read("beat")
            time.sleep(_PERIOD / 20)
        dead = self._dead(before, self._read("beat"))
        return self._claim(dead) if dead else None

    def _dead(self, before: Mapping[int, str], after: Mapping[int, str]) -> str:
        ended = self._read("end")
        others = [rank for rank in range(self.size) if rank != self.rank and rank not in ended]
        dead = [rank for rank in others if before.get(rank) == after.get(rank)]
        verb = "is" if len(dead) == 1 else "are"
        return f"{_ranks(dead)} {verb} dead or stopped: nothing was heard for {_SILENCE:g} s" if dead else ""


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _first(error: BaseException) -> str:
    """The first line of an error, without the place in torch's sources and without advice."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[[^ ]*:\d+\] ", "", line).split(". This is typically")[0]


_watch: list[Watch] = []


def watched(store: Any, rank: int, size: int, keeper: int | None) -> Watch:
    """Begin to tell the others that this rank lives.

    Args:
        store: of this attempt alone.
        rank: this process's.
        size: how many there are.
        keeper: the rank in whose process the store lives; None if in the launcher's.
    """
    watch = Watch(store, rank, size, keeper)
    _watch[:] = [watch]
    return watch


@contextlib.contextmanager
def exchanging(what: str, ranks: Collection[int] | None = None) -> Iterator[None]:
    """Count an exchange; if it breaks, say who broke it.

    Args:
        what: what is exchanged, for the message.
        ranks: who takes part; None for all.

    Raises:
        TransferError: if it breaks, or if one before it did.
    """
    if not _watch:
        yield
        return
    watch = _watch[0]
    watch.begin()
    try:
        yield
    except RuntimeError as error:
        here = f"rank {watch.rank} of {watch.size} (process {os.getpid()})"
        raise TransferError(f"{what} on {here}: {watch.blame(ranks)} ({_first(error)})") from error
    finally:
        watch.finish()
