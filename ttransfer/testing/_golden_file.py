"""Golden files on disk: JSON with a row of numbers to a line, checked when read, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest

__all__ = ["decoded", "encoded", "golden_read", "golden_written", "numbers", "part"]

FORMAT = "ttransfer.golden/1"


def golden_read(path: Path, loss: str) -> dict[str, Any]:
    """Return what a golden file holds: "loss", "arguments" (their names) and "cases".

    Args:
        path: of the file.
        loss: the name of the loss it should be of.

    Raises:
        TransferError: if there is no such file, if it is no golden file, or one of another loss.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TransferError(f"{path}: there is no such file; write it with ttransfer check --golden") from None
    except json.JSONDecodeError as error:
        raise TransferError(f"{path}: it is not JSON: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TransferError(f"{path}: it cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise TransferError(f"{path}: it is no golden file, which says 'format': {FORMAT!r}")
    for key, kind in (("loss", str), ("arguments", list), ("cases", dict)):
        if not isinstance(found.get(key), kind) or not found[key]:
            raise TransferError(f"{path}: its {key!r} is missing or no {kind.__name__}")
    if found["loss"] != loss:
        raise TransferError(f"{path}: it is the golden file of {found['loss']!r}, not of {loss!r}; each has its own")
    return found


def golden_written(path: Path, loss: str, arguments: list[str], cases: Mapping[str, Any]) -> None:
    """Write a golden file beside and rename it.

    Args:
        path: of the file; its folders are made.
        loss: the loss's name.
        arguments: the names of its arguments.
        cases: what `encoded` made.
    """
    text = _text({"format": FORMAT, "loss": loss, "arguments": arguments, "cases": cases}) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise TransferError(f"{path}: it cannot be written: {error}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)  # mkstemp's are the owner's alone
        os.replace(beside, path)
    except OSError as error:
        os.unlink(beside)
        raise TransferError(f"{path}: it cannot be written: {error}") from error


def part(path: Path, name: str, case: Any, key: str, wanted: list[str]) -> dict[str, Any]:
    """Return the inputs or the gradients of a case.

    Args:
        path: of the file, for messages.
        name: of the case.
        case: what the file holds for it.
        key: "inputs" or "gradients".
        wanted: names that must be there.

    Raises:
        TransferError: if they are not.
    """
    found = case.get(key) if isinstance(case, Mapping) else None
    if not isinstance(found, dict):
        raise TransferError(f"{path}: case {name!r} has no {key!r}")
    for one in wanted:
        if one not in found:
            raise TransferError(f"{path}: the {key} of case {name!r} have no {one!r}{nearest(one, found)}")
    return found


def decoded(stored: Any, what: str) -> Any:
    """Return a nested list as a tensor, float64, int64 or bool, and anything else as it is.

    Args:
        stored: what the file holds.
        what: it is, for messages.

    Raises:
        TransferError: for a list that is no tensor.
    """
    if not isinstance(stored, list):
        return stored
    try:
        return torch.tensor(_floats(stored), dtype=torch.float64 if _any_real(stored) else None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TransferError(f"{what} is no tensor: {error}") from error


def numbers(stored: Any, shape: tuple[int, ...], what: str) -> Tensor:
    """Return stored numbers as a float64 tensor; one number stands for all.

    Args:
        stored: what the file holds.
        shape: of the tensor.
        what: it is, for messages.

    Raises:
        TransferError: for anything but numbers of that shape.
    """
    found = decoded([stored] if not isinstance(stored, list) else stored, what).double()
    if not isinstance(stored, list):
        return found.reshape(()).expand(shape).clone()
    if tuple(found.shape) != shape:
        raise TransferError(f"{what} is of shape {tuple(found.shape)}, and should be of {shape}")
    return found


def encoded(x: Any) -> Any:
    """Return a value for the file: a tensor as nested lists; a type's name for what the file cannot hold.

    Args:
        x: an argument, a value or a gradient.
    """
    if isinstance(x, Tensor):
        return _json(x.tolist()) if x.ndim else {"given": "Tensor"}
    return _json(x) if x is None or isinstance(x, (bool, int, float, str)) else {"given": type(x).__name__}


def _json(x: Any) -> Any:
    """JSON has no nan and no inf."""
    if isinstance(x, list):
        return [_json(y) for y in x]
    return x if not isinstance(x, float) or math.isfinite(x) else str(x)


def _floats(x: Any) -> Any:
    return [_floats(y) for y in x] if isinstance(x, list) else float(x) if isinstance(x, str) else x


def _any_real(x: Any) -> bool:
    return any(map(_any_real, x)) if isinstance(x, list) else isinstance(x, (float, str))


def _text(x: Any, indent: str = "") -> str:
    """A float is written so that it is read back to the bit, with up to 17 digits."""
    more = indent + " "
    if isinstance(x, dict) and x:
        items = [f"{json.dumps(key)}: {_text(value, more)}" for key, value in x.items()]
        return "{\n" + ",\n".join(more + item for item in items) + f"\n{indent}}}"
    if isinstance(x, list) and any(isinstance(y, list) for y in x):
        return "[\n" + ",\n".join(more + _text(y, more) for y in x) + f"\n{indent}]"
    return json.dumps(x, allow_nan=False, ensure_ascii=False)
