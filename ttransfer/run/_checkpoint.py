"""Checkpoints: a State on disk, whole or not there at all.

A checkpoint is a directory of two files: `state.safetensors` holds the leaves under their paths
("trainable/student/fc.weight"), `state.json` their order, dtypes, shapes and strides, what else was saved, and the
checksums of both. Both are written to a sibling directory and flushed to the disk before one rename makes them
the checkpoint, so a process killed at any moment leaves the old one or the new one. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ttransfer._errors import TransferError, nearest
from ttransfer.core import _tree as tree
from ttransfer.run import _codec as codec

__all__ = ["checkpoints", "latest", "load", "prune", "save"]

S = TypeVar("S")

_FORMAT = "ttransfer.checkpoint/1"
_TENSORS = "state.safetensors"
_STRUCTURE = "state.json"
_STEP = re.compile(r"step-(\d+)")


def save(path: str | os.PathLike[str], state: Any, *, extra: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint, all of it or nothing.

    What was at `path` before stays readable until the new checkpoint is whole.

    Args:
        path: the checkpoint's own directory; its parents are made.
        state: a State, or any tree of tensors. Leaves may be on any device and may share storage.
        extra: what else to keep: None, bool, int, float, str, bytes, tensors, and lists, tuples and dicts of them.

    Returns:
        The path.

    Raises:
        TransferError: for a leaf or an extra that cannot be stored, or a path that is in use by something else.

    Example:
        >>> import tempfile, torch
        >>> from ttransfer.run import load, save
        >>> state = {"weight": torch.tensor([1.0, 2.0]), "step": torch.tensor(3)}
        >>> with tempfile.TemporaryDirectory() as runs:
        ...     path = save(f"{runs}/best", state, extra={"accuracy": 0.5})
        ...     load(path, {"weight": torch.zeros(2), "step": torch.tensor(0)})
        ({'weight': tensor([1., 2.]), 'step': tensor(3)}, {'accuracy': 0.5})
    """
    path = Path(path)
    if path.exists() and not (path / _STRUCTURE).is_file() and not _is_empty(path):
        raise TransferError(f"save: {str(path)!r} is there and is no checkpoint; give a path of its own")
    leaves = _named(state, "save")
    stored = {key: leaf.detach().to("cpu") for key, leaf in leaves.items()}
    _unshare(stored)
    structure = {
        "library": _library(),
        "torch": str(torch.__version__),
        "leaves": [[key, *_describe(leaf)] for key, leaf in leaves.items()],
        "extra": codec.encode(dict(extra or {})),
    }

    new = _beside(path, "new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        save_file(stored, new / _TENSORS)
    except (KeyError, ValueError, SafetensorError) as error:
        shutil.rmtree(new)
        raise TransferError(f"save: safetensors cannot store this state: {error}") from error
    structure["sha256"] = _digest(new / _TENSORS)
    seal = hashlib.sha256(codec.fingerprint(structure).encode()).hexdigest()
    text = json.dumps({"format": _FORMAT, **structure, "seal": seal}, indent=1)
    (new / _STRUCTURE).write_text(text, encoding="utf-8")
    for part in (new / _TENSORS, new / _STRUCTURE, new):
        _flush(part)
    _publish(new, path)
    return path


def load(path: str | os.PathLike[str], like: S) -> tuple[S, dict[str, Any]]:
    """Read a checkpoint into the structure of a template.

    Args:
        path: the checkpoint's directory.
        like: a state of the same structure, for example from `step.init(...)`: it gives the order of keys and the
            devices; its values are not read.

    Returns:
        The state, each leaf bit for bit what was saved and in a storage of its own, and the extra.

    Raises:
        TransferError: if there is no checkpoint, if it is foreign, truncated or changed, or if a key, shape or dtype
            differs from the template's.

    Example:
        >>> import torch
        >>> from ttransfer.run import load
        >>> load("nowhere/at-all", {"weight": torch.zeros(2)})
        Traceback (most recent call last):
        ...
        ttransfer._errors.TransferError: load: no checkpoint at 'nowhere/at-all'; there are none
    """
    path = _present(Path(path))
    structure = _structure(path)
    found = {key: (dtype, shape, stride) for key, dtype, shape, stride in structure["leaves"]}
    wanted = _named(like, "load")
    _compare(path, wanted, found)
    tensors = path / _TENSORS
    if not tensors.is_file() or _digest(tensors) != structure["sha256"]:
        raise TransferError(f"load: {str(tensors)!r} is truncated or changed: its checksum is not the one saved")
    with safe_open(tensors, framework="pt") as file:
        values = [_place(file.get_tensor(key), found[key][2], leaf.device) for key, leaf in wanted.items()]
    return tree.unflatten(like, values), codec.decode(structure["extra"])


def checkpoints(directory: str | os.PathLike[str]) -> list[Path]:
    """List the checkpoints that `fit` left in a directory, oldest first.

    Args:
        directory: what was given to `fit` as `checkpoint`; it need not exist.

    Returns:
        Their paths, by the number of updates done.

    Example:
        >>> import tempfile, torch
        >>> from ttransfer.run import checkpoints, save
        >>> with tempfile.TemporaryDirectory() as runs:
        ...     for step in (9, 10):
        ...         _ = save(f"{runs}/step-{step:08d}", {"step": torch.tensor(step)})
        ...     [path.name for path in checkpoints(runs)]
        ['step-00000009', 'step-00000010']
    """
    directory = Path(directory)
    listed = directory.iterdir() if directory.is_dir() else ()
    found = [(int(name[1]), path) for path in listed if (name := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def latest(directory: str | os.PathLike[str]) -> Path | None:
    """Return the newest checkpoint that `fit` left in a directory, or None.

    Args:
        directory: what was given to `fit` as `checkpoint`; it need not exist.

    Returns:
        The path of the checkpoint with the most updates done.

    Example:
        >>> from ttransfer.run import latest
        >>> latest("runs/nowhere") is None
        True
    """
    found = checkpoints(directory)
    return found[-1] if found else None


def prune(directory: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what a killed process left half-written or half-deleted."""
    for path in checkpoints(directory)[:-keep]:
        # A name of its own first: a process killed in the middle of deleting leaves nothing that looks whole.
        gone = _beside(path, "gone")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
    for leftover in directory.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _publish(new: Path, path: Path) -> None:
    """Rename, keeping what was there under a name that `load` knows until the new one has its place."""
    old = _beside(path, "old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    new.rename(path)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, state: str) -> Path:
    return path.with_name(f".{path.name}.{state}")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _library() -> str:
    try:
        return importlib.metadata.version("ttransfer")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"


def _named(state: Any, caller: str) -> dict[str, Tensor]:
    """Return path -> leaf; "/" separates, since the names of parameters hold dots."""
    named = tree.paths(state, "/")
    if len(named) != len(tree.leaves(state)):
        raise TransferError(f"{caller}: two leaves of the state have one path; no key may contain '/'")
    for key, leaf in named.items():
        if not isinstance(leaf, Tensor):
            raise TransferError(f"{caller}: {key!r} is a {type(leaf).__name__}; a state holds tensors only")
        if leaf.layout != torch.strided:
            raise TransferError(f"{caller}: {key!r} is {leaf.layout}; a state holds dense tensors only")
    return named


def _unshare(stored: dict[str, Tensor]) -> None:
    """Make every tensor contiguous and give it a storage of its own, as safetensors wants."""
    seen: set[int] = set()
    for key, leaf in stored.items():
        leaf = leaf.contiguous()
        if leaf.untyped_storage().data_ptr() in seen:
            leaf = leaf.clone()
        seen.add(leaf.untyped_storage().data_ptr())
        stored[key] = leaf


def _describe(leaf: Tensor) -> tuple[str, list[int], list[int]]:
    # Strides are kept (channels_last and the like), because kernels and so the last bits depend on them.
    dense = torch.empty_like(leaf, device="meta")
    return str(leaf.dtype).removeprefix("torch."), list(leaf.shape), list(dense.stride())


def _place(value: Tensor, stride: list[int], device: torch.device) -> Tensor:
    return torch.empty_strided(value.shape, stride, dtype=value.dtype, device=device).copy_(value)


def _present(path: Path) -> Path:
    """Return where the checkpoint is: at `path`, or beside it if `save` was killed between its two renames."""
    for place in (path, _beside(path, "old")):
        if place.exists():
            return place
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    raise TransferError(f"load: no checkpoint at {str(path)!r}{nearest(path.name, siblings)}")


def _structure(path: Path) -> dict[str, Any]:
    file = path / _STRUCTURE
    if not file.is_file():
        raise TransferError(f"load: {str(path)!r} is no checkpoint of this library: it has no {_STRUCTURE}")
    try:
        read: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TransferError(f"load: {str(file)!r} is truncated or changed: {error}") from error
    found = cast(dict[str, Any], read) if isinstance(read, dict) else {}
    if (form := found.pop("format", None)) != _FORMAT:
        raise TransferError(f"load: {str(file)!r} is no checkpoint of this library: format {form!r}, not {_FORMAT!r}")
    seal = found.pop("seal", None)
    if hashlib.sha256(codec.fingerprint(found).encode()).hexdigest() != seal:
        raise TransferError(f"load: {str(file)!r} is changed: its checksum is not the one saved")
    return found


def _compare(path: Path, wanted: dict[str, Tensor], found: dict[str, tuple[str, list[int], list[int]]]) -> None:
    """Refuse a checkpoint whose keys, shapes or dtypes are not the template's, in one error."""
    problems: list[str] = []
    for key, leaf in wanted.items():
        dtype, shape, _ = _describe(leaf)
        if key not in found:
            problems.append(f"{key!r} expected {dtype} {tuple(shape)}, found nothing{nearest(key, found)}")
        elif found[key][:2] != (dtype, shape):
            problems.append(f"{key!r} expected {dtype} {tuple(shape)}, found {found[key][0]} {tuple(found[key][1])}")
    problems += [f"{key!r} found, not expected{nearest(key, wanted)}" for key in found if key not in wanted]
    if problems:
        more = f" ... ({len(problems)} keys in all)" if len(problems) > 3 else ""
        raise TransferError(f"load: {str(path)!r} does not fit the template: " + "; ".join(problems[:3]) + more)
