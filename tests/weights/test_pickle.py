"""Files of torch.save: views of the file, and nothing that stands in it runs."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ttransfer._errors import TransferError
from ttransfer.weights._pickle import read_pickle, tensors_in


def saved(path: Path, tree: Any, **options: Any) -> Path:
    torch.save(tree, path, **options)
    return path


def parts(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, records: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return path


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"w": torch.arange(1000.0)})
    before = path.read_bytes()
    found = read_pickle(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    found["w"].zero_()
    del found
    assert path.read_bytes() == before


def test_the_format_of_old_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"w": torch.arange(4.0), "epoch": 3}, _use_new_zipfile_serialization=False)
    found = read_pickle(path)
    assert (found["w"].tolist(), found["epoch"]) == ([0, 1, 2, 3], 3)


class Command:
    def __init__(self, *words: str) -> None:
        self.words = words

    def __reduce__(self) -> Any:
        return os.system, self.words


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle 2", "pickle 4", "pickle 0"])
def test_a_command_is_refused_and_does_not_run(tmp_path: Path, how: str) -> None:
    path, done = tmp_path / "x.pt", tmp_path / "done"
    bomb = {"w": torch.ones(2), "z": Command(f"touch {done}")}
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps({"z": bomb["z"]}, protocol=int(how[-1])))
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(TransferError, match=re.escape(repr(str(path)))) as caught:
        read_pickle(path)
    assert not done.exists()
    if how in ("zip", "legacy", "pickle 2"):
        assert re.search(r"to read it, '(posix|os)\.system' would have to run", str(caught.value))
        assert "save its tensors as safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (print, "print"),
    ],
)
def test_what_is_no_weight_is_named(tmp_path: Path, value: Any, wanted: str) -> None:
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2), "args": value})
    with pytest.raises(TransferError, match=re.escape(f"to read it, {wanted!r} would have to run")):
        read_pickle(path)


def test_what_the_user_allows_is_made(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"args": argparse.Namespace(lr=0.1)})
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert read_pickle(path)["args"].lr == 0.1


def test_the_environment_cannot_make_it_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = saved(tmp_path / "x.pt", {"z": Command(f"touch {tmp_path / 'done'}")})
    with pytest.raises(TransferError, match="would have to run"):
        read_pickle(path)
    assert not (tmp_path / "done").exists()


def test_a_tar_of_old_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))
    with pytest.raises(TransferError, match=r"is a tar of a torch before 0\.1\.10"):
        read_pickle(tmp_path / "x.pt")


def test_a_program_is_refused(tmp_path: Path) -> None:
    packed(tmp_path / "x.pt", {"x/data.pkl": b"", "x/constants.pkl": b"", "x/code/__torch__.py": b""})
    with pytest.raises(TransferError, match="is a TorchScript archive, a program"):
        read_pickle(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_every_cut_is_refused(tmp_path: Path, legacy: bool) -> None:
    path = saved(tmp_path / "x.pt", {"w": torch.arange(4.0)}, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in [*range(1, len(whole), max(1, len(whole) // 60)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(TransferError, match=r"torch\.save|would have to run"):  # the latter of half a name
            read_pickle(path)


@pytest.mark.parametrize(
    "text", [b"hello, world" * 9, b"\x80\x02garbage" * 9, b"PK\x03\x04" + bytes(99), b"\x80", b"PK"]
)
def test_garbage_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(text)
    with pytest.raises(TransferError, match=r"torch\.save"):
        read_pickle(tmp_path / "x.pt")


def test_a_pickle_without_torch_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": [1.0, 2.0]}, protocol=2))
    with pytest.raises(TransferError, match=r"is no file of torch\.save, or not all of one"):
        read_pickle(tmp_path / "x.pkl")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": [1.0, 2.0]}, protocol=4))
    with pytest.raises(TransferError, match=r"is a pickle of a newer protocol than that of torch\.save"):
        read_pickle(tmp_path / "x.pkl")


def number(n: int) -> bytes:
    """A number as pickle writes it."""
    return b"K" + bytes([n]) if n < 256 else b"\x8a" + bytes([len(pickle.encode_long(n))]) + pickle.encode_long(n)


@pytest.mark.parametrize(
    ("storage", "size"), [(7, 6), (7, 7), (40, 40), (6, 7), (5, 5), (2**40, 2**40), (2**40, 6), (6, 2**40), (2**62, 6)]
)
def test_a_pickle_that_asks_for_more_than_its_record_is_refused(tmp_path: Path, storage: int, size: int) -> None:
    """torch maps the file and would take what comes after the record."""
    records = parts(saved(tmp_path / "x.pt", {"w": torch.arange(6.0)}))
    text = records["x/data.pkl"]
    at = text.index(b"K\x06", text.index(b"cpu"))  # the storage's length; the shape's comes after it
    then = text.index(b"K\x06", at + 2)
    records["x/data.pkl"] = text[:at] + number(storage) + text[at + 2 : then] + number(size) + text[then + 2 :]
    with pytest.raises(TransferError, match=r"torch\.save"):
        read_pickle(packed(tmp_path / "y.pt", records))


def test_packed_records_are_refused(tmp_path: Path) -> None:
    """A gigabyte of zeros is a megabyte there; and mapped as it is, it would be read as numbers."""
    records = parts(saved(tmp_path / "x.pt", {"w": torch.zeros(10_000)}))
    with pytest.raises(TransferError, match=r"is packed, \d+ bytes for \d+"):
        read_pickle(packed(tmp_path / "y.pt", records, zipfile.ZIP_DEFLATED))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_record_twice_is_refused(tmp_path: Path) -> None:
    records = parts(saved(tmp_path / "x.pt", {"w": torch.zeros(3)}))
    packed(tmp_path / "y.pt", records)
    with zipfile.ZipFile(tmp_path / "y.pt", "a") as archive:
        archive.writestr("x/data/0", bytes(12))
    with pytest.raises(TransferError, match="it holds 'x/data/0' twice"):
        read_pickle(tmp_path / "y.pt")


def test_records_that_overlap_are_refused(tmp_path: Path) -> None:
    records = parts(saved(tmp_path / "x.pt", {"w": torch.zeros(3), "v": torch.ones(3)}))
    whole = packed(tmp_path / "y.pt", records).read_bytes()
    with zipfile.ZipFile(tmp_path / "y.pt") as archive:
        first, second = (archive.getinfo(f"x/data/{i}").header_offset for i in (0, 1))
    old = second.to_bytes(4, "little") + b"x/data/1"
    assert whole.count(old) == 1  # in the directory at the end
    (tmp_path / "y.pt").write_bytes(whole.replace(old, first.to_bytes(4, "little") + b"x/data/1"))
    with pytest.raises(TransferError, match="begins within another"):
        read_pickle(tmp_path / "y.pt")


def test_tensors_are_found_in_what_refers_to_itself() -> None:
    tree: dict[str, Any] = {"w": torch.ones(1), "more": [(torch.ones(2), 3)]}
    tree["me"], tree["again"] = tree, tree["more"]
    assert sorted(x.numel() for x in tensors_in(tree)) == [1, 2]


def test_a_tree_as_deep_as_a_file_can_make_it() -> None:
    tree: Any = {"w": torch.ones(3)}
    for _ in range(100_000):
        tree = [tree]
    assert [x.numel() for x in tensors_in(tree)] == [3]
    while isinstance(tree, list):  # to be freed one after the other
        (tree,) = tree
