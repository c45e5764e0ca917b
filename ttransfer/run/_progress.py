"""How far a run is: a bar in a terminal, a few lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol

from ttransfer.run._logs import Row

__all__ = ["Show", "showing"]

_LINES = 20


class Show(Protocol):
    """Called after every step, with the row of the step if it has one."""

    def __call__(self, done: int, row: Row) -> object: ...


@contextlib.contextmanager
def showing(steps: int, done: int, progress: bool | None) -> Iterator[Show]:
    """Show a run on the standard error stream.

    Args:
        steps: where the run ends.
        done: where it begins.
        progress: False shows nothing; True a bar in a terminal and else about 20 lines in all; None the bar only.
    """
    terminal = sys.stderr.isatty()
    if progress is False or (progress is None and not terminal):
        yield lambda done, row: None
    elif terminal:
        with _bar(steps, done) as show:
            yield show
    else:
        yield _lines(steps, done)


def text_of(row: Row) -> str:
    """Return the loss, the terms and what was evaluated; hypers and single members are left to the log.

    Example:
        >>> text_of({"loss": 1.25, "kd": 0.5, "kd.weight": 1.0, "kd/0": 0.5})
        'loss 1.25  kd 0.5'
    """
    return "  ".join(f"{name} {value:.4g}" for name, value in row.items() if not {".", "/"} & set(name))


def _lines(steps: int, done: int) -> Show:
    printed = done * _LINES // steps
    seen: Row = {}

    def show(done: int, row: Row) -> None:
        nonlocal printed
        seen.update(row)
        if row and done * _LINES // steps > printed:
            printed = done * _LINES // steps
            sys.stderr.write(f"step {done}/{steps}  {text_of(seen)}\n")
            sys.stderr.flush()

    return show


@contextlib.contextmanager
def _bar(steps: int, done: int) -> Iterator[Show]:
    from tqdm import tqdm

    seen: Row = {}
    with tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, file=sys.stderr) as bar:

        def show(done: int, row: Row) -> None:
            if row:
                seen.update(row)
                bar.set_postfix_str(text_of(seen), refresh=False)
            bar.update(done - bar.n)

        yield show
