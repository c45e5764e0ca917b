"""Shards: what is read, and an index that is not true of its files."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import ttransfer as tt
from ttransfer._errors import TransferError

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
FIRST = {"b": torch.arange(2.0), "a": torch.arange(3)}
SECOND = {"d": torch.ones(2), "c": torch.ones(())}
WHERE = {"a": ONE, "b": ONE, "c": TWO, "d": TWO}


def index(folder: Path, where: Any = WHERE, name: str = "model.safetensors.index.json") -> Path:
    save_file(FIRST, folder / ONE)
    save_file(SECOND, folder / TWO)
    text = (
        where if isinstance(where, bytes) else json.dumps({"metadata": {"total_size": 1}, "weight_map": where}).encode()
    )
    (folder / name).write_bytes(text)
    return folder / name


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(x, wanted[name]) for name, x in found.items())


@pytest.mark.parametrize("by_folder", [False, True])
def test_shards_are_one_checkpoint(tmp_path: Path, by_folder: bool) -> None:
    path = index(tmp_path)
    found = tt.weights.load(tmp_path if by_folder else path)
    assert same(found, FIRST | SECOND)
    assert list(found) == ["a", "b", "c", "d"]


def test_shards_of_pickles_keep_their_order(tmp_path: Path) -> None:
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for name, tensors in zip(names, (FIRST, SECOND), strict=True):
        torch.save(tensors, tmp_path / name)
    where = {"d": names[1], "c": names[1], "b": names[0], "a": names[0]}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    found = tt.weights.load(tmp_path)
    assert same(found, FIRST | SECOND)
    assert list(found) == ["b", "a", "d", "c"]


def test_shards_may_be_links(tmp_path: Path) -> None:
    """As they are in the folders of a hub's cache."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    path = index(tmp_path / "snapshot")
    for name in (ONE, TWO):
        (tmp_path / "snapshot" / name).rename(tmp_path / "blobs" / name)
        (tmp_path / "snapshot" / name).symlink_to(Path("..") / "blobs" / name)
    assert same(tt.weights.load(path), FIRST | SECOND)


BROKEN = {
    "no JSON": (b'{"weight_map": ', "cannot be read: Expecting value"),
    "a name twice": (b'{"weight_map": {"a": "x", "a": "y"}}', "cannot be read: 'a' stands in it twice"),
    "nested": (b'{"weight_map": ' + b"[" * 100_000, "nested too deep"),
    "a list": (b"[]", "cannot be read: it is a list"),
    "no map": (b'{"metadata": {}}', "has no 'weight_map' of tensor -> file"),
    "a map to numbers": ({"a": 3}, "has no 'weight_map' of tensor -> file"),
    "up": ({"a": "../x.safetensors"}, "it says that 'a' is in '../x.safetensors'; a shard lies beside its index"),
    "up in words of Windows": ({"a": "..\\x.safetensors"}, "a shard lies beside its index"),
    "absolute": ({"a": "/etc/passwd"}, "a shard lies beside its index"),
    "a folder": ({"a": ".."}, "a shard lies beside its index"),
    "nothing": ({"a": ""}, "a shard lies beside its index"),
    "a zero byte": ({"a": "x\0.safetensors"}, "a shard lies beside its index"),
    "itself": ({"a": "model.safetensors.index.json"}, "which is no file of tensors"),
    "a shard that is missing": (
        {**WHERE, "c": "model-00003-of-00002.safetensors"},
        "'model-00003-of-00002.safetensors', the shard of 1 tensors, is not there; did you mean",
    ),
    "a tensor that is missing": (
        {**WHERE, "layer.e": ONE},
        f"'layer.e' should be in '{ONE}' and is not; there are:",
    ),
    "a tensor in the other shard": ({**WHERE, "c": ONE}, f"'c' should be in '{ONE}' and is not"),
    "a tensor that it does not name": (
        {k: v for k, v in WHERE.items() if k != "c"},
        f"'c' is in '{TWO}', and the index does not name it",
    ),
    "none": ({}, "holds no tensors under names"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_index_that_is_not_true_is_refused(tmp_path: Path, case: str) -> None:
    where, why = BROKEN[case]
    with pytest.raises(TransferError, match=re.escape(why)):
        tt.weights.load(index(tmp_path, where))


def test_a_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    path = index(tmp_path)
    save_file({**SECOND, "a": torch.zeros(3)}, tmp_path / TWO)
    with pytest.raises(TransferError, match=re.escape(f"'a' is in two shards, '{ONE}' and '{TWO}'")):
        tt.weights.load(path)


def test_a_shard_is_a_flat_dict_in_a_file(tmp_path: Path) -> None:
    path = index(tmp_path, {"a": "x.bin"})
    torch.save({"state_dict": FIRST}, tmp_path / "x.bin")
    with pytest.raises(TransferError, match="is no shard: wanted a flat dict of tensors"):
        tt.weights.load(path)
    (tmp_path / "x.bin").unlink()
    (tmp_path / "x.bin").mkdir()
    with pytest.raises(TransferError, match=r"x\.bin' is no file, but a folder"):
        tt.weights.load(path)
    (tmp_path / "x.bin").rmdir()
    os.mkfifo(tmp_path / "x.bin")
    with pytest.raises(TransferError, match=r"x\.bin' is no file, but a device"):
        tt.weights.load(path)
    (tmp_path / "x.bin").unlink()
    (tmp_path / "x.bin").symlink_to("x.bin")
    with pytest.raises(TransferError, match="cannot be read: Too many levels of symbolic links"):
        tt.weights.load(path)


def test_shards_without_an_index_are_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    save_file(FIRST, tmp_path / ONE)
    with pytest.raises(TransferError, match=re.escape(f"has shards, such as '{ONE}', and no index of them")):
        tt.weights.load(tmp_path)
