"""JSON that brings back what went in: tuples, bytes, tensors, arrays, keys that are no strings.

A data loader's `state_dict` may hold any of these, and a checkpoint must not unpickle. What JSON lacks is
written as a dict of one entry whose key starts with "$".
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from safetensors import torch as safetensors
from torch import Tensor

from ttransfer._errors import TransferError

__all__ = ["decode", "encode", "fingerprint"]


def encode(value: Any, at: str = "extra") -> Any:
    """Return a value that `json` can write and `decode` brings back; `at` names it in errors.

    Raises:
        TransferError: for a value of any other type, naming where it is.

    Example:
        >>> encode({"order": (3, 1), 7: b"seed"})
        {'$dict': [['order', {'$tuple': [3, 1]}], [7, {'$bytes': 'c2VlZA=='}]]}
    """
    kind = cast(type[Any], type(value))
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if kind in (list, tuple):
        items = [encode(item, f"{at}/{i}") for i, item in enumerate(value)]
        return items if kind is list else {"$tuple": items}
    if isinstance(value, Mapping):
        pairs = [[k, encode(v, f"{at}/{k}")] for k, v in cast(Mapping[Any, Any], value).items()]
        if all(type(k) is str and not k.startswith("$") for k, _ in pairs):
            return dict(cast(Any, pairs))
        return {"$dict": [[encode(k, at), v] for k, v in pairs]}
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, Tensor):
        return {"$tensor": _write(value)}
    if kind.__module__ == "numpy":
        return {"$array": _write(torch.as_tensor(value))} if kind.__name__ == "ndarray" else encode(value.item(), at)
    raise TransferError(
        f"{at}: a {kind.__module__}.{kind.__qualname__} cannot be saved; wanted None, bool, int, float, str, bytes, "
        "tensors, arrays, and lists, tuples and dicts of them"
    )


def decode(value: Any) -> Any:
    """Bring back what `encode` was given.

    Example:
        >>> decode({"$dict": [["order", {"$tuple": [3, 1]}], [7, {"$bytes": "c2VlZA=="}]]})
        {'order': (3, 1), 7: b'seed'}
    """
    if isinstance(value, list):
        return [decode(item) for item in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    entries = cast(dict[str, Any], value)
    if len(entries) == 1 and (tag := next(iter(entries))) in _TAGS:
        return _TAGS[tag](entries[tag])
    return {k: decode(v) for k, v in entries.items()}


def fingerprint(value: Any) -> str:
    """Return a text that is equal for equal JSON values, for checksums."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _write(tensor: Tensor) -> str:
    data = safetensors.save({"": tensor.detach().to("cpu").contiguous()})
    return base64.b64encode(data).decode()


def _read(text: str) -> Tensor:
    return safetensors.load(base64.b64decode(text))[""]


_TAGS: dict[str, Callable[[Any], Any]] = {
    "$float": float,
    "$tuple": lambda items: tuple(decode(item) for item in items),
    "$dict": lambda pairs: {decode(k): decode(v) for k, v in pairs},
    "$bytes": base64.b64decode,
    "$tensor": _read,
    "$array": lambda text: _read(text).numpy(),
}
