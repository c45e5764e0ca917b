"""How the process of a rank ends: the others are told why, and nothing keeps it from ending."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import NoReturn

import torch.distributed as dist

from ttransfer.dist._faults import Watch

__all__ = ["exit_now", "tell_at_end"]

_GRACE = 10.0  # seconds for a process whose group is broken to clean up in


def tell_at_end(watch: Watch) -> None:
    """Tell the others when an exception, a signal or the end of the program ends this process."""
    hook = sys.excepthook

    def failed(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        if os.getpid() == watch.owner:
            watch.fail(error)
        hook(kind, error, where)

    sys.excepthook = failed
    atexit.register(_leave, watch)
    # Outside the main thread Python allows no handlers; what a program has set itself stays.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: _terminated(watch, number, frame))


def _terminated(watch: Watch, number: int, frame: FrameType | None) -> None:
    """Die of the signal, as without a handler, but say first if another rank is the cause.

    torchrun ends the other ranks as soon as one has died. Those in an exchange have an error on its way that tells it.
    """
    if os.getpid() == watch.owner:
        if watch.broken:
            return
        if watch.waiting:
            watch.signal = number
            return
        name = signal.Signals(number).name
        watch.end(f"by {name}")
        if cause := watch.other_cause():
            text = f"rank {watch.rank} of {watch.size} (process {os.getpid()}) was ended by {name}: {cause}\n"
            os.write(2, text.encode())
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _leave(watch: Watch) -> None:
    """Leave the group at the end of the program, unless it is broken: then nobody answers."""
    if os.getpid() != watch.owner:
        return
    if not watch.broken:
        watch.end("")
        watch.stop()
        if dist.is_initialized():
            dist.destroy_process_group()
        return
    watch.linger()
    if not watch.stop():
        exit_now()
    # What a backend does at the end may wait for those who are dead. The kernel does not wait for it.
    with contextlib.suppress(ValueError):  # outside the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the status should be that of the error
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, _GRACE)


def exit_now() -> NoReturn:
    """End a process that has failed without the interpreter's own end.

    A thread that comes back from a store when the interpreter is gone would abort the process.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed
            stream.flush()
    os._exit(1)
