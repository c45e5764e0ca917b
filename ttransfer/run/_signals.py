"""Ctrl-C and SIGTERM as a request to stop between steps."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["Stop", "stopping"]


class Stop:
    """Whether a stop was asked for: `signal` is None, "SIGINT" or "SIGTERM"."""

    signal: str | None = None


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Note the first SIGINT or SIGTERM instead of dying of it; a Ctrl-C after it raises KeyboardInterrupt.

    The old handlers come back at the end. Outside the main thread, where Python allows none, nothing is caught.

    Example:
        >>> with stopping() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.signal
        'SIGTERM'
    """
    stop, owner = Stop(), os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A worker forked by a data loader has this handler too. It outlives Ctrl-C, so that the batch under way
            # arrives, and obeys SIGTERM, by which the loader ends it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif number == signal.SIGINT and stop.signal is not None:
            raise KeyboardInterrupt
        else:
            stop.signal = signal.Signals(number).name

    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A handler that was not set from Python shows as None, and could not be put back.
    mine = [number for number, handler in old.items() if handler is not None]
    if threading.current_thread() is not threading.main_thread():
        mine = []
    for number in mine:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number in mine:
            signal.signal(number, old[number])
