"""Read a checkpoint of any make, and run nothing that is in it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest
from ttransfer.core._types import Params
from ttransfer.weights._pickle import read_pickle
from ttransfer.weights._safetensors import read_safetensors
from ttransfer.weights._saved_state import TENSORS, is_saved_state, net_of
from ttransfer.weights._sharded import INDEX, read_sharded
from ttransfer.weights._wrappers import stripped, unwrapped

__all__ = ["load"]

PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, and of a compiled module
_SHARD = re.compile(r".*-\d+-of-\d+\.\w+")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def load(
    path: str | os.PathLike[str],
    *,
    of: str | None = None,
    strip: Sequence[str] = PREFIXES,
    finite: bool = False,
    tell: Callable[[str], object] | None = None,
) -> Params:
    """Read a checkpoint as a flat dict of tensors, whole or not at all.

    It reads safetensors and what `torch.save` wrote, in one file or in shards with an index, and a net out of what
    `tt.save` wrote. Tensors are views of the file, which is mapped into memory: nothing is read before it is used,
    writing to one does not change the file, and the file must stay as it is for as long as they are in use. Only
    the format that torch had before 1.6 is copied. Nothing in a file is run: a pickle that asks for more than
    tensors, containers and what `torch.serialization.add_safe_globals` allows is refused.

    The checkpoint may lie in other dicts ("state_dict", "model", ...), beside an optimizer and an epoch. If there is
    more than one, such as averaged weights beside the others, `of` says which; none is preferred. Entries that are
    no tensors are left out. Names that are one tensor in the file, tied weights, are one here.

    `safetensors.torch.save_file` writes tensors by dtype and name, so that the order of definition is lost; such
    a file comes sorted by name, from which `match` knows that its order means nothing. Any other comes in the order
    of its bytes, and what `torch.save` or `tt.weights.save` wrote in the order of the dict.

    Args:
        path: a file, told by what is in it; an index of shards, "*.index.json"; or a folder with one of these, of
            which safetensors come first.
        of: which checkpoint, if there are several: its keys joined by "/" ("ema/model"), or a word of them ("ema"
            for "state_dict_ema"); "" for tensors that stand beside other dicts. Of a `tt.save` folder the net.
        strip: prefixes taken off, one after the other, where all names have them; () for none.
        finite: refuse weights that are NaN or infinite, for which all of them are read. Else they are not looked at.
        tell: gets a line for each thing that was left out, unwrapped or stripped; `print` prints them.

    Returns:
        Name -> tensor on the CPU, in the dtypes of the file.

    Raises:
        TransferError: for a file that is not there, is cut off, is not true of itself, wants code to run, or
            is of another kind; for several checkpoints without `of`; for an index that its shards do not fit.

    Example:
        >>> import tempfile, torch, ttransfer as tt
        >>> trained = {"epoch": 3, "state_dict": {"module.fc.weight": torch.ones(2, 3)}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(trained, f"{folder}/last.pt")
        ...     tt.weights.load(f"{folder}/last.pt", tell=lambda line: print(line.rpartition("/")[2]))
        last.pt': took 'state_dict', and not 'epoch' beside it
        last.pt': took 'module.' off 1 name
        {'fc.weight': tensor([[1., 1., 1.],
                [1., 1., 1.]])}
    """
    path = Path(path)
    say = tell or (lambda line: None)
    try:
        where, tensors = _of_path(path, of, say)
    except OSError as error:
        raise TransferError(f"load: {str(path)!r} cannot be read: {error.strerror or error}") from error
    tensors = stripped(where, tensors, strip, say)
    if finite and (name := next((name for name, x in tensors.items() if not _is_finite(x)), None)) is not None:
        raise TransferError(f"{where}: {name!r} {tuple(tensors[name].shape)} is not finite")
    return tensors


def _of_path(path: Path, of: str | None, tell: Callable[[str], object]) -> tuple[str, Params]:
    """Read what is at a path; return its name for messages too."""
    if path.is_dir():
        if is_saved_state(path):
            return f"load: {str(path)!r}", net_of(path, read_safetensors(path / TENSORS), of)
        path = _in_folder(path)
        tell(f"load: {str(path.parent)!r}: took {path.name!r}")
    elif not path.exists():
        there = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        raise TransferError(f"load: there is no file {str(path)!r}{nearest(path.name, there)}")
    where = f"load: {str(path)!r}"
    if path.name.endswith(INDEX):
        _regular(path)
        tree: Any = read_sharded(path, lambda shard: _flat(shard, _read(shard)))
    else:
        tree = _read(path)
    return where, unwrapped(where, tree, of, tell)


def _in_folder(folder: Path) -> Path:
    """The one checkpoint in a folder."""
    names = sorted(one.name for one in folder.iterdir() if not one.is_dir())
    kinds = (
        [name for name in names if name.endswith(".safetensors" + INDEX)],
        [name for name in names if name.endswith(".safetensors")],
        [name for name in names if name.endswith(tuple(kind + INDEX for kind in _PICKLES))],
        [name for name in names if name.endswith(_PICKLES)],
    )
    found = next((kind for kind in kinds if kind), [])
    where = f"load: the folder {str(folder)!r}"
    if shards := [name for name in found if _SHARD.fullmatch(name)]:
        raise TransferError(f"{where} has shards, such as {shards[0]!r}, and no index of them, *{INDEX}")
    if len(found) > 1:
        raise TransferError(f"{where} has several checkpoints: {', '.join(map(repr, found[:6]))}; give one of them")
    if not found and any(name.endswith(".distcp") for name in names):
        raise TransferError(f"{where} is of torch.distributed.checkpoint: make one file of it with dcp_to_torch_save")
    if not found:
        raise TransferError(f"{where} has no checkpoint{nearest('', [one.name for one in folder.iterdir()])}")
    return folder / found[0]


def _regular(path: Path) -> None:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise TransferError(f"load: {str(path)!r} is no file, but a {'folder' if stat.S_ISDIR(mode) else 'device'}")


def _read(path: Path) -> Any:
    """Read one file as what it is, whatever its name; a name that says otherwise is told."""
    _regular(path)
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise TransferError(f"load: {str(path)!r} is empty")
    pickled = head.startswith((b"PK", b"\x80"))
    if head[8:9] == b"{" or (path.suffix == ".safetensors" and not pickled):
        _stranger(path, head)
        return read_safetensors(path)
    if path.suffix == ".safetensors":
        raise TransferError(f"load: {str(path)!r} is no safetensors file, but one of torch.save: give it its name, .pt")
    _stranger(path, head)
    return read_pickle(path)


def _stranger(path: Path, head: bytes) -> None:
    """Say what a file is that is often found in the place of a checkpoint."""
    known = {
        b"version https://git-lfs": "a pointer of Git LFS and not the file it stands for: git lfs pull",
        b"<": "a web page or XML, perhaps the answer to a download that failed",
        b"\x89HDF": "an HDF5 file; wanted safetensors or a file of torch.save",
        b"GGUF": "a GGUF file; wanted safetensors or a file of torch.save",
        b"\x93NUMPY": "a NumPy array; wanted safetensors or a file of torch.save",
        b"\x1f\x8b": "compressed by gzip: unpack it first",
    }
    for mark, what in known.items():
        if head.startswith(mark) and (mark != b"<" or head[1:2].isalpha() or head[1:2] in (b"!", b"?")):
            raise TransferError(f"load: {str(path)!r} is {what}")


def _flat(path: Path, tree: Any) -> Params:
    """What a shard must be: names and tensors, and nothing around them."""
    if not isinstance(tree, Mapping) or not all(isinstance(k, str) and isinstance(x, Tensor) for k, x in tree.items()):
        raise TransferError(f"load: {str(path)!r} is no shard: wanted a flat dict of tensors")
    return dict(tree)


def _is_finite(x: Tensor) -> bool:
    if not x.numel() or not (x.is_floating_point() or x.is_complex()):
        return True
    # Expanded numbers are one.
    for dim, stride in enumerate(x.stride()):
        x = x.narrow(dim, 0, 1) if stride == 0 else x
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    x = x.float() if x.element_size() == 1 else x
    least, most = x.aminmax()
    return bool(least.isfinite() & most.isfinite())
