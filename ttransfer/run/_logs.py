"""Logs as rows of Python numbers, and where the rows go: JSON lines, TensorBoard, a function."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ttransfer._errors import TransferError

__all__ = ["Log", "Row", "Write", "row_of", "writing"]

Row = dict[str, float]
"""name -> number; in what is written also "step"."""

Write = Callable[[int, Row], object]
"""Takes the number of updates done and the row of that step."""

Log = str | os.PathLike[str] | Write
"""A path that ends in .jsonl, a directory for TensorBoard, or a function of (step, row)."""


def row_of(values: Mapping[str, Any], source: str = "logs") -> Row:
    """Return values as Python floats.

    A value of shape (n,), of an ensemble, gives n + 1 entries: every member's under "name/i", and under "name" the
    mean over the members whose value is finite. One of shape (n, m), of a sweep of an ensemble, has "name/i/j".

    Args:
        values: name -> number or tensor of shape (), (n,) or (n, m).
        source: what the values come from, for errors.

    Raises:
        TransferError: for a value that is neither.

    Example:
        >>> import torch
        >>> row_of({"loss": torch.tensor([1.0, 3.0, torch.nan]), "lr": 0.1})
        {'loss': 2.0, 'loss/0': 1.0, 'loss/1': 3.0, 'loss/2': nan, 'lr': 0.1}
    """
    row: Row = {}
    for name, value in values.items():
        found = value.detach().tolist() if isinstance(value, Tensor) else value
        try:
            if isinstance(found, list):
                members = dict(_members(name, cast(list[Any], found)))
                kept = [member for member in members.values() if math.isfinite(member)]
                row[name] = statistics.mean(kept) if kept else math.nan  # exact: that of equal numbers is the number
                row.update(members)
            else:
                row[name] = float(found)
        except (TypeError, ValueError):
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TransferError(
                f"{source}: {name!r} is {what}, wanted a number, or a tensor with one number for each member"
            ) from None
    return row


def _members(name: str, found: list[Any], depth: int = 2) -> Iterator[tuple[str, float]]:
    for i, member in enumerate(found):
        if isinstance(member, list) and depth > 1:
            yield from _members(f"{name}/{i}", cast(list[Any], member), depth - 1)
        else:
            yield f"{name}/{i}", float(cast(Any, member))


@contextlib.contextmanager
def writing(log: Log | None, begin: int) -> Iterator[Write]:
    """Open a log for a run that begins after `begin` updates, and close it at the end.

    What a log already holds of later steps is dropped: the run that wrote it was cut off after its last checkpoint,
    and those steps are now done again.
    """
    if log is None:
        yield lambda step, row: None
    elif callable(log):
        yield log
    else:
        path = Path(log)
        if path.suffix == ".jsonl" and not path.is_dir():
            opened = _json_lines(path, begin)
        elif path.is_dir() or (not path.suffix and not path.exists()):
            opened = _tensorboard(path, begin)
        else:
            raise TransferError(f"fit: log={str(path)!r} is neither a path that ends in .jsonl nor a directory")
        with opened as write:
            yield write


@contextlib.contextmanager
def _json_lines(path: Path, begin: int) -> Iterator[Write]:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        kept = "".join(line for line, step in _lines(path) if step <= begin)
        new = path.with_name(f".{path.name}.new")
        new.write_text(kept, encoding="utf-8")
        new.replace(path)
    with path.open("a", encoding="utf-8", buffering=1) as file:

        def write(step: int, row: Row) -> None:
            # JSON has no NaN: null stands for what is not finite.
            entries = {name: value if math.isfinite(value) else None for name, value in row.items()}
            file.write(json.dumps({"step": step, **entries}, allow_nan=False) + "\n")

        yield write


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the rows of a log and their steps; the last line may be torn."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if line.endswith("\n"):
            try:
                yield line, int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                raise TransferError(f"fit: {str(path)!r} is no log of this library: see line {number}") from None


@contextlib.contextmanager
def _tensorboard(path: Path, begin: int) -> Iterator[Write]:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise TransferError(
            f"fit: log={str(path)!r} is a directory, so for TensorBoard, which is not installed: "
            "install `tensorboard`, or give a path that ends in .jsonl"
        ) from error
    board: Any = SummaryWriter(str(path), purge_step=begin + 1)

    def write(step: int, row: Row) -> None:
        for name, value in row.items():
            board.add_scalar(name, value, step)
        board.flush()  # so that a checkpoint is never ahead of the log

    try:
        yield write
    finally:
        board.close()
