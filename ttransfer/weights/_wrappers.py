"""What is around a checkpoint: dicts of dicts, an optimizer beside the weights, prefixes on every name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._types import Params

__all__ = ["stripped", "unwrapped"]

Tell = Callable[[str], object]
Leaves = Mapping[Any, Any]

# What a training script saves beside the weights; taken only if it is asked for.
_BESIDE = re.compile(
    r"optim.*|.*optimi[sz]er.*|.*sched.*|.*scaler.*|callbacks|loops|hyper_?param.*|hparams|.*rng.*|.*random_state.*|amp"
)
_SHOWN, _DEEP = 6, 32


def unwrapped(where: str, tree: Any, of: str | None, tell: Tell) -> Params:
    """Find the checkpoint in what a file holds.

    Args:
        where: the file, for messages.
        tree: what was read from it.
        of: which, if there are several: keys joined by "/", or one word of them; "" is the outermost dict itself.
        tell: gets a line for each thing that is not taken.

    Raises:
        TransferError: where there is none, or more than one and `of` does not say which.
    """
    if not isinstance(tree, Mapping):
        raise TransferError(f"{where} holds {shown(tree)}; wanted a dict of tensors")
    found = {"/".join(path): (path, leaves) for path, leaves in _dicts(where, cast(Leaves, tree))}
    likely = {key: leaves for key, (path, leaves) in found.items() if _is_checkpoint(path, leaves)}
    every = {key: leaves for key, (_, leaves) in found.items()}
    name = _one(where, likely or every, every, of)
    if name:
        outer: Leaves = tree
        *above, last = found[name][0]
        for key in above:
            outer = outer[key]
        rest = [key for key in outer if key != last]
        tell(f"{where}: took {name!r}" + (f", and not {_some(rest)} beside it" if rest else ""))
    left = [key for key, value in every[name].items() if not isinstance(value, Tensor)]
    if left:
        tell(f"{where}: left out {_some(left)}, no {'tensor' if len(left) == 1 else 'tensors'}")
    return _plain(where, {key: value for key, value in every[name].items() if isinstance(value, Tensor)})


def _dicts(where: str, tree: Leaves) -> Iterator[tuple[tuple[str, ...], Leaves]]:
    """Yield the dicts in which tensors stand, with the keys that lead there, outermost first, each once.

    What is deeper than anybody nests is not looked at, or a small file could take hours.
    """
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], Leaves]] = [((), tree)]
    while level:
        inner: list[tuple[tuple[str, ...], Leaves]] = []
        for path, node in level:
            if id(node) in seen:  # under two keys, or within itself
                continue
            seen.add(id(node))
            if any(isinstance(value, Tensor) and isinstance(key, str) for key, value in node.items()):
                yield path, {key: value for key, value in node.items() if isinstance(key, str)}
            if {"state", "param_groups"} <= set(node) or len(path) == _DEEP:
                continue  # an optimizer's
            for key, value in node.items():
                if isinstance(value, Mapping) and isinstance(key, str) and not key.endswith("_extra_state"):
                    inner.append(((*path, key), cast(Leaves, value)))
        level = inner


def _is_checkpoint(path: tuple[str, ...], leaves: Leaves) -> bool:
    """Whether a dict may be a net's: not an optimizer's, not scores, not the state of a generator."""
    if any(_BESIDE.fullmatch(key.lower()) for key in path):
        return False
    return any(
        isinstance(value, Tensor) and value.ndim and not _BESIDE.fullmatch(key.lower()) for key, value in leaves.items()
    )


def _one(where: str, likely: Mapping[str, Leaves], every: Mapping[str, Leaves], of: str | None) -> str:
    if of is None:
        if not every:
            raise TransferError(f"{where} holds no tensors under names")
        if len(likely) == 1:
            return next(iter(likely))
        raise TransferError(f"{where} holds several checkpoints: {_told(likely)}; say which with of=")
    if of in every:
        return of
    having = [key for key in every if of and of.lower() in re.split(r"[^a-z0-9]+", key.lower())]
    if len(having) == 1:
        return having[0]
    if having:
        raise TransferError(
            f"{where} holds several checkpoints called {of!r}: {_told({key: every[key] for key in having})}"
        )
    if set(every) <= {""}:
        raise TransferError(f"{where} holds one checkpoint, without a name: leave out of={of!r}")
    raise TransferError(f"{where} holds no checkpoint {of!r}{nearest(of, [key for key in every if key])}")


def _told(dicts: Mapping[str, Leaves]) -> str:
    counts = {key: sum(isinstance(value, Tensor) for value in leaves.values()) for key, leaves in dicts.items()}
    parts = [f"{key!r} ({count} tensor{'s' * (count > 1)})" for key, count in counts.items()]
    return ", ".join(parts[:_SHOWN]) + (f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else "")


def _some(keys: Sequence[Any]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(repr(key)[:80] for key in keys[:_SHOWN]) + more


def _plain(where: str, tensors: Params) -> Params:
    """Take off what only training needs, and make tied tensors one."""
    found: dict[str, Tensor] = {}
    tied: dict[tuple[Any, ...], Tensor] = {}
    for name, x in tensors.items():
        if x.is_meta or x.layout != torch.strided or x.is_quantized:
            what = "meta, without values" if x.is_meta else "quantised" if x.is_quantized else str(x.layout)
            raise TransferError(f"{where}: {name!r} {tuple(x.shape)} is {what}; wanted a dense tensor")
        x = x.detach() if x.requires_grad or type(x) is not Tensor else x
        at = (x.data_ptr(), x.dtype, x.shape, x.stride(), x.is_conj(), x.is_neg())
        found[name] = tied.setdefault(at, x) if x.numel() else x
    return found


def stripped(where: str, tensors: Params, prefixes: Sequence[str], tell: Tell) -> Params:
    """Take off prefixes that all names have."""
    off = ""
    while tensors and (prefix := next((p for p in prefixes if _on_all(p, tensors)), None)):
        tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
        off += prefix
    if off:
        tell(f"{where}: took {off!r} off {len(tensors)} name{'s' * (len(tensors) > 1)}")
    return tensors


def _on_all(prefix: str, names: Params) -> bool:
    return bool(prefix) and all(name.startswith(prefix) and name != prefix for name in names)
