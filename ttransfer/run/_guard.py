"""Updates that were refused because something in them was not finite: noticed without waiting on the device."""

from __future__ import annotations

import math
import warnings
from typing import Any, cast

import torch

from ttransfer.core._types import Logs

__all__ = ["Guard"]

_MANY = 256


class Guard:
    """Keeps the logs of the steps since the last check, and looks at them only when asked.

    A step says in `finite` whether its update was taken. One that nobody could take is a problem; one that some
    members of an ensemble could not take is a warning, once per member, since the others go on.
    """

    def __init__(self, done: int) -> None:
        self._done = done
        self._logs: list[Logs] = []
        self._warned: set[int] = set()

    def add(self, logs: Logs) -> None:
        """Keep the logs of one step for the next check."""
        if "finite" in logs:
            self._logs.append(logs)

    @property
    def full(self) -> bool:
        """Whether so many logs wait that a check is due."""
        return len(self._logs) >= _MANY

    def check(self) -> str | None:
        """Return what is wrong with the steps since the last check, or None."""
        logs, self._logs = self._logs, []
        if not logs:
            return None
        # One number first: in the usual case it is all that crosses from the device.
        finite = torch.stack([entry["finite"] for entry in logs])
        if bool(finite.all()):
            self._done += len(logs)
            return None
        rows = cast(list[list[bool]], finite.reshape(len(logs), -1).tolist())
        for entry, taken in zip(logs, rows, strict=True):
            if not any(taken):
                return f"fit: the update after step {self._done} was refused: {_blame(entry, 0)}"
            for member, fine in enumerate(taken):
                if not fine and member not in self._warned:
                    self._warned.add(member)
                    message = f"member {member} refused the update after step {self._done}: {_blame(entry, member)}"
                    warnings.warn(f"fit: {message}; the other members go on", RuntimeWarning, stacklevel=3)
            self._done += 1
        return None


def _blame(logs: Logs, member: int) -> str:
    """Name what is not finite in one member's logs."""
    values: dict[str, Any] = {name: value.reshape(-1).tolist() for name, value in logs.items() if name != "finite"}
    bad = {name: v for name, all_ in values.items() if not math.isfinite(v := all_[member if len(all_) > 1 else 0])}
    if len(bad) > 1:
        bad.pop("loss", None)  # it follows from the others
    if not bad:
        return "all terms are finite, so a gradient or a new parameter is not"
    return ", ".join(f"{name} is {value}" for name, value in bad.items())
