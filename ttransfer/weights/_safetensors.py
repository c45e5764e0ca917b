"""One safetensors file, mapped into memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

from safetensors import safe_open

from ttransfer._errors import TransferError
from ttransfer.core._types import Params
from ttransfer.weights._json import decoded

__all__ = ["ORDER", "RESERVED", "read_safetensors"]

ORDER = "ttransfer.order"  # the note in which `save` keeps it
RESERVED = ("format", ORDER)  # notes that are not of a tie
MOST = 100_000_000  # bytes of a header; the safetensors package reads no longer one
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


class _Entry(NamedTuple):
    """What the header says of a tensor."""

    name: str
    dtype: str
    begin: int
    end: int


def read_safetensors(path: Path) -> Params:
    """Read a safetensors file, each tensor a view of the mapped file.

    `save_file` writes tensors by dtype and within a dtype by name, so most files have lost the order of definition.
    A file in that order is returned sorted by name, which is how `match` knows; any other in the order of its bytes;
    and one of `tt.weights.save` in the order that it was given.
    What `save_model` left out as tied to another tensor is that tensor again.

    Raises:
        TransferError: for a file that is cut off, or whose header is not true of it.
    """
    entries, notes = _header(path)
    dtypes: dict[str, list[str]] = {}
    for entry in entries:
        dtypes.setdefault(entry.dtype, []).append(entry.name)
    lost = all(names == sorted(names) for names in dtypes.values())
    names = [entry.name for entry in entries]
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in names}
    except Exception as error:  # SafetensorError, and what torch says of a dtype that it lacks
        _broken(path, str(error))
    found |= {
        name: found[of] for name, of in notes.items() if name not in RESERVED and name not in found and of in found
    }
    if order := _order(notes, found):
        return {name: found[name] for name in order}
    return {name: found[name] for name in sorted(found)} if lost else found


def _order(notes: Mapping[str, str], found: Params) -> list[str] | None:
    """The order that is noted, if it is one of these tensors: whoever changes a file may hand the notes on."""
    try:
        names = decoded(notes.get(ORDER, "{}").encode()).get("names")
    except ValueError:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in cast(list[Any], names)):
        return None
    order = cast(list[str], names)
    return order if len(order) == len(found) and set(order) == set(found) else None


def _broken(path: Path, why: str) -> NoReturn:
    raise TransferError(f"load: {str(path)!r} is no whole safetensors file: {why}")


def _header(path: Path) -> tuple[list[_Entry], dict[str, str]]:
    """Read what the file says of itself, in the order of the bytes, and see whether it can be so."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8:
            _broken(path, "too short")
        if length > size - 8:
            _broken(path, f"it has {size} bytes, and its header alone should have {length}")
        if length > MOST:
            _broken(path, f"a header of {length} bytes is too long")
        text = file.read(length)
    try:
        told = decoded(text)
    except ValueError as error:
        _broken(path, f"its header cannot be read: {error}")
    notes = told.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        _broken(path, "its metadata are no texts")
    entries = sorted((_entry(path, name, one) for name, one in told.items()), key=lambda one: (one.begin, one.end))
    at = 0
    for entry in entries:
        if entry.begin != at:
            _broken(path, f"{entry.name!r} begins at byte {entry.begin}, where the tensor before it ends at {at}")
        at = entry.end
    if at != size - 8 - length:
        _broken(path, f"its tensors should have {at} bytes, and {size - 8 - length} are there")
    return entries, cast(dict[str, str], notes)


def _entry(path: Path, name: str, one: Any) -> _Entry:
    told = cast(Mapping[str, Any], one) if isinstance(one, dict) else {}
    dtype, shape, span = told.get("dtype"), _counts(told.get("shape")), _counts(told.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or span is None or len(span) != 2:
        _broken(path, f"of {name!r} it says {str(one)[:200]}; want a dtype, a shape and two offsets")
    begin, end = span
    if (bits := BITS.get(dtype)) is not None and math.prod(shape) * bits != 8 * (end - begin):
        _broken(path, f"{name!r} {tuple(shape)} {dtype} cannot have {end - begin} bytes")
    return _Entry(name, dtype, begin, end)


def _counts(value: Any) -> list[int] | None:
    whole = isinstance(value, list) and all(type(x) is int and x >= 0 for x in cast(list[Any], value))
    return cast(list[int], value) if whole else None
