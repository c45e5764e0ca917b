"""A checkpoint in several files, and the index that says which tensor is in which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

from torch import Tensor

from ttransfer._errors import TransferError, nearest
from ttransfer.core._types import Params
from ttransfer.weights._json import decoded

__all__ = ["INDEX", "read_sharded"]

INDEX = ".index.json"
MOST = 1_000_000_000  # bytes of an index


def read_sharded(index: Path, read: Callable[[Path], Params]) -> Params:
    """Read the shards that an index names, in the order of their files.

    Where every shard is sorted by name, so is the result: the order of definition is lost.

    Args:
        index: "*.index.json": {"weight_map": {tensor: file}}; the files lie beside it.
        read: reads one of them.

    Raises:
        TransferError: unless the shards hold what the index names, all of it once, and nothing else.
    """
    where = _weight_map(index)
    folder = index.parent
    wanted: dict[str, list[str]] = {}
    for name, file in where.items():
        wanted.setdefault(file, []).append(name)
    there = [path.name for path in folder.iterdir()]
    for file, names in wanted.items():
        _plain(index, names[0], file)
        if file not in there:
            _broken(index, f"{file!r}, the shard of {len(names)} tensors, is not there{nearest(file, there)}")
    shards = {file: read(folder / file) for file in sorted(wanted)}
    found: dict[str, Tensor] = {}
    home: dict[str, str] = {}
    for file, tensors in shards.items():
        for name in wanted[file]:
            if name not in tensors:
                _broken(index, f"{name!r} should be in {file!r} and is not{nearest(name, tensors)}")
        for name, x in tensors.items():
            if name in home:
                _broken(index, f"{name!r} is in two shards, {home[name]!r} and {file!r}")
            if name not in where:
                _broken(index, f"{name!r} is in {file!r}, and the index does not name it{nearest(name, where)}")
            found[name], home[name] = x, file
    lost = all(list(tensors) == sorted(tensors) for tensors in shards.values())
    return {name: found[name] for name in sorted(found)} if lost else found


def _broken(index: Path, why: str) -> NoReturn:
    raise TransferError(f"load: the index {str(index)!r} is not true of its files: {why}")


def _weight_map(index: Path) -> dict[str, str]:
    if index.stat().st_size > MOST:
        _broken(index, f"{index.stat().st_size} bytes are too many")
    try:
        found = decoded(index.read_bytes()).get("weight_map")
    except ValueError as error:
        raise TransferError(f"load: the index {str(index)!r} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in cast(dict[str, Any], found).values()):
        raise TransferError(f"load: {str(index)!r} is no index of shards: it has no 'weight_map' of tensor -> file")
    return cast(dict[str, str], found)


def _plain(index: Path, name: str, file: str) -> None:
    """Refuse a shard that is not a file beside the index: whoever wrote the index must not choose what is read."""
    if not file or file in (".", "..") or "/" in file or "\\" in file or "\0" in file:
        _broken(index, f"it says that {name!r} is in {file!r}; a shard lies beside its index")
    if file.endswith(".json"):
        _broken(index, f"it says that {name!r} is in {file!r}, which is no file of tensors")
