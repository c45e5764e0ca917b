"""One file of torch.save, without running anything that stands in it."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError

__all__ = ["read_pickle", "tensors_in"]

# "GLOBAL os.system was not an allowed global", "unsafe GLOBAL os.system whose module os is blocked".
_GLOBAL = re.compile(r"GLOBAL (\S*\w) (?:was not an allowed|whose module)")


def read_pickle(path: Path) -> Any:
    """Read what torch.save wrote: tensors are views of the mapped file, or copies where the format is the old one.

    torch's unpickler for weights makes tensors, dicts and numbers, and what `torch.serialization.add_safe_globals`
    allows besides. A file that asks for more is refused.

    Raises:
        TransferError: for a file that wants code to run, is cut off, or is not true of itself.
    """
    zipped = _begins(path, b"PK\x03\x04")
    sizes = _records(path) if zipped else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle that no torch wrote; it fails then
            tree = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # an unpickler that is fed anything may raise anything
        _refuse(path, error)
    if sizes is not None:
        _compare(path, tree, sizes)
    return tree


def _begins(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def _broken(path: Path, why: str) -> NoReturn:
    raise TransferError(f"load: {str(path)!r} is no whole file of torch.save: {why}")


def _refuse(path: Path, error: Exception) -> NoReturn:
    text = str(error)
    if wanted := _GLOBAL.search(text):
        raise TransferError(
            f"load: {str(path)!r} is more than weights: to read it, {wanted[1]!r} would have to run, and nothing in a "
            "file is run here; where you trust it, open it and save its tensors as safetensors"
        ) from error
    if "legacy .tar" in text:
        raise TransferError(
            f"load: {str(path)!r} is a tar of a torch before 0.1.10, which cannot be read without running what is in "
            "it; where you trust it, open it and save its tensors as safetensors"
        ) from error
    # torch wraps its own errors into advice; what happened is in the last lines.
    told = text.partition("WeightsUnpickler error: ")[2] or text
    first = next((line.strip() for line in told.splitlines() if line.strip()), "")
    if "Unsupported operand" in told:
        raise TransferError(
            f"load: {str(path)!r} is a pickle of a newer protocol than that of torch.save, and is not read without "
            "running what is in it; where you trust it, open it and save its tensors as safetensors"
        ) from error
    if not isinstance(error, (RuntimeError, pickle.UnpicklingError)):
        first = f"its pickle makes no sense ({type(error).__name__} {first})".replace(" )", ")")
    # What a file writes into an error must not reach a terminal as it is.
    first = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in first[:300])
    raise TransferError(f"load: {str(path)!r} is no file of torch.save, or not all of one: {first}") from error


def _records(path: Path) -> Counter[int]:
    """The sizes of an archive's records, if each is in the file as it is, once, and by itself.

    torch maps the file and takes bytes from where a record begins: a record that is packed, or less than what the
    pickle says of it, would give it the bytes of something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = sorted(archive.infolist(), key=lambda one: one.header_offset)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        _broken(path, f"{error}")
    names = Counter(one.filename for one in records)
    if any(name.endswith("/constants.pkl") for name in names):
        raise TransferError(
            f"load: {str(path)!r} is a TorchScript archive, a program; save its state_dict() where you trust it"
        )
    if twice := [name for name, count in names.items() if count > 1]:
        _broken(path, f"it holds {twice[0]!r} twice")
    end = 0
    for one in records:
        if one.compress_type != zipfile.ZIP_STORED or one.file_size != one.compress_size:
            _broken(path, f"{one.filename!r} is packed, {one.compress_size} bytes for {one.file_size}")
        if one.header_offset < end:
            _broken(path, f"{one.filename!r} begins within another")
        end = one.header_offset + one.file_size
    if end > path.stat().st_size:
        _broken(path, f"{records[-1].filename!r} ends after the file")
    return Counter(one.file_size for one in records if "/data/" in one.filename)


def _compare(path: Path, tree: Any, sizes: Counter[int]) -> None:
    storages = {s.data_ptr(): s for x in tensors_in(tree) if _plain(x) and (s := x.untyped_storage()).nbytes()}
    wanted = Counter(storage.nbytes() for storage in storages.values())
    for size, count in wanted.items():
        if count > sizes[size]:
            _broken(path, f"a tensor is said to be of {size} bytes, and there is no record of as many")


def _plain(x: Tensor) -> bool:
    return x.layout == torch.strided and not x.is_meta


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of dicts, lists and tuples, each container once however often it occurs."""
    seen: set[int] = set()
    left = [tree]
    while left:
        value: Any = left.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (Mapping, list, tuple)) and id(cast(Any, value)) not in seen:
            seen.add(id(cast(Any, value)))
            inner: Iterable[Any] = cast(Any, value).values() if isinstance(value, Mapping) else cast(Any, value)
            left.extend(inner)
