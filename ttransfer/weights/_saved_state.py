"""A net out of a State that this library saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ttransfer._errors import TransferError, nearest
from ttransfer.core._types import Params
from ttransfer.weights._json import decoded

__all__ = ["is_saved_state", "net_of"]

TENSORS, STRUCTURE = "state.safetensors", "state.json"


def is_saved_state(folder: Path) -> bool:
    """Whether `tt.save` wrote a folder."""
    return (folder / STRUCTURE).is_file() and (folder / TENSORS).is_file()


def net_of(folder: Path, state: Mapping[str, Tensor], of: str | None) -> Params:
    """Take a net's parameters and buffers.

    Args:
        folder: what `tt.save` wrote.
        state: its tensors: "trainable/student/fc.weight", "buffers/student/bn.running_mean", and so on.
        of: the net; "student(target)" takes the buffers of that domain.

    Returns:
        The tensors under the names that they have in the module, sorted: parameters that train, those that are
        frozen and buffers are kept apart, so that the order of definition is lost.

    Raises:
        TransferError: for a folder of something else, and unless there is one such net.
    """
    where = f"load: {str(folder)!r}"
    if not str(_format(folder)).startswith("ttransfer.checkpoint/"):
        raise TransferError(f"{where} has a {STRUCTURE} that is not of this library")
    nets: dict[str, dict[str, Tensor]] = {}
    slots: dict[str, dict[str, Tensor]] = {}
    for key, x in state.items():
        part, _, rest = key.partition("/")
        net, mark, name = rest.partition("/")
        if not mark or (part, net) == ("trainable", "terms"):
            continue
        if part in ("trainable", "frozen", "ema"):
            nets.setdefault(net, {})[name] = x
        elif part == "buffers":
            slots.setdefault(net, {})[name] = x
    every = {**nets, **{slot: {**nets.get(slot.partition("(")[0], {}), **more} for slot, more in slots.items()}}
    # A net whose buffers are kept for each domain is not whole without those of one.
    apart = {slot.partition("(")[0] for slot in slots if "(" in slot}
    whole = {name: tensors for name, tensors in every.items() if name not in apart}
    if of is None and len(whole) == 1:
        of = next(iter(whole))
    if of is None or of not in whole:
        names = ", ".join(map(repr, whole)) or "none"
        told = f"; say which with of=: {names}" if of is None else f", and no {of!r}{nearest(of, whole)}"
        raise TransferError(f"{where} is a State of tt.save, which tt.load restores; its nets are {len(whole)}{told}")
    return {name: whole[of][name] for name in sorted(whole[of])}


def _format(folder: Path) -> Any:
    try:
        return decoded((folder / STRUCTURE).read_bytes()).get("format")
    except ValueError:
        return None
