"""Write a checkpoint that `load` gives back as it was."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._types import Params
from ttransfer.weights._pool import want_checkpoint
from ttransfer.weights._routes import Tensors
from ttransfer.weights._safetensors import ORDER, RESERVED

__all__ = ["save"]

SUFFIX = ".safetensors"


def save(path: str | os.PathLike[str], tensors: Tensors) -> None:
    """Write a checkpoint as a safetensors file, whole or not at all.

    `tt.weights.load` gives back the same names in the same order, values, dtypes and ties. The file is one like any
    other to whoever else reads it; the order stands in its metadata, for the bytes are sorted by dtype and name, and so
    does what is tied, as `safetensors.torch.save_model` notes it. A file that is there before stays as it is until the
    new one is complete, also for those who have it mapped into memory.

    Args:
        path: a file, "*.safetensors"; its folder is made.
        tensors: name -> tensor, on any device, of any strides, with or without gradient. Names of one tensor (tied
            weights) are written once; tensors that merely overlap are written one by one.

    Raises:
        TransferError: for another name of the file, a folder, a disk that refuses, no tensors, and what is no
            checkpoint: tensors without values (meta), sparse, quantised, or of a dtype that safetensors lacks.

    Example:
        >>> import tempfile, torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        >>> net[1].weight = net[0].weight
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tt.weights.save(f"{folder}/net.safetensors", net.state_dict())
        ...     found = tt.weights.load(f"{folder}/net.safetensors")
        >>> list(found)
        ['0.weight', '0.bias', '1.weight', '1.bias']
        >>> found["1.weight"] is found["0.weight"]
        True
    """
    path = Path(os.path.realpath(path))  # a link is followed
    where = f"save: {str(path)!r}"
    want_checkpoint("save", tensors)
    if path.suffix != SUFFIX:
        raise TransferError(f"{where} would be a safetensors file: name it {path.stem + SUFFIX!r}")
    if not tensors:
        raise TransferError(f"{where}: there are no tensors")
    stored, notes = _once(where, tensors)
    if (names := list(tensors)) != sorted(names):
        notes[ORDER] = json.dumps({"names": names})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise TransferError(f"{where} cannot be written: {error.strerror or error}") from error
    try:
        save_file(stored, beside, {"format": "pt", **notes})
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)  # mkstemp's are the owner's alone
        os.replace(beside, path)
    except BaseException as error:
        os.unlink(beside)
        if isinstance(error, OSError):
            raise TransferError(f"{where} cannot be written: {error.strerror or error}") from error
        if isinstance(error, (SafetensorError, KeyError, ValueError, RuntimeError)):
            raise TransferError(f"{where} cannot be written as safetensors: {error}") from error
        raise


def _once(where: str, tensors: Tensors) -> tuple[Params, dict[str, str]]:
    """Each tensor once, contiguous and of its own memory; and name -> the name that it is tied to."""
    groups: dict[Any, list[str]] = {}
    for name, x in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise TransferError(f"{where}: {name!r} cannot name a tensor")
        if x.is_meta or x.layout != torch.strided or x.is_quantized or x.dtype == torch.complex128:
            what = "meta, without values" if x.is_meta else "quantised" if x.is_quantized else f"{x.dtype}, {x.layout}"
            raise TransferError(f"{where}: {name!r} {tuple(x.shape)} is {what}, for which safetensors has no form")
        groups.setdefault(_place(name, x), []).append(name)
    stored: Params = {}
    notes: dict[str, str] = {}
    taken: set[int] = set()
    for names in groups.values():
        # A note under a name that has a meaning of its own would not be read as a tie.
        kept = next((name for name in names if name in RESERVED), names[0])
        x = tensors[kept].detach().resolve_conj().resolve_neg().to("cpu").contiguous()
        memory = x.untyped_storage().data_ptr()
        stored[kept] = x.clone() if memory in taken else x
        taken.add(memory)
        for name in names:
            if name in RESERVED and name != kept:
                stored[name] = x.clone()
            elif name != kept:
                notes[name] = kept
    return stored, notes


def _place(name: str, x: Tensor) -> object:
    """What two names of one tensor have in common."""
    if not x.numel():
        return name
    return (x.device, x.data_ptr(), x.dtype, x.shape, x.stride(), x.is_conj(), x.is_neg())
