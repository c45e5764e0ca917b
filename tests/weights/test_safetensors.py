"""Safetensors: what is read, in which order, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from ttransfer._errors import TransferError
from ttransfer.weights._safetensors import read_safetensors

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
I64 = {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]}


def written(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.arange(4.0), "b": torch.arange(3)}, tmp_path / "x.safetensors")
    found = read_safetensors(tmp_path / "x.safetensors")
    gap = found["a"].data_ptr() - found["b"].data_ptr()
    assert gap == 3 * 8  # beside one another, as in the file
    found["a"].add_(1)  # and yet the file is not written
    assert read_safetensors(tmp_path / "x.safetensors")["a"].tolist() == [0, 1, 2, 3]


def test_a_file_that_save_file_sorted_is_sorted_by_name(tmp_path: Path) -> None:
    """It writes by dtype first: taken for an order of definition, that would mislead a match by order."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2))
    save_file(net.state_dict(), tmp_path / "x.safetensors")
    found = read_safetensors(tmp_path / "x.safetensors")
    assert list(found) == sorted(net.state_dict()) != list(net.state_dict())


def test_another_order_of_bytes_is_kept(tmp_path: Path) -> None:
    header = {"a": {**F32, "data_offsets": [8, 16]}, "z": F32, "m": {**F32, "data_offsets": [16, 24]}}
    found = read_safetensors(written(tmp_path / "x.safetensors", header, torch.arange(6.0).numpy().tobytes()))
    assert list(found) == ["z", "a", "m"]
    assert found["a"].tolist() == [2, 3]


def test_tied_weights_that_save_model_left_out_are_tied(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    save_model(net, str(tmp_path / "x.safetensors"), metadata={"format": "pt"})
    found = read_safetensors(tmp_path / "x.safetensors")
    assert list(found) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert found["1.weight"] is found["0.weight"]


TWO = {"a": F32, "b": I64}
BROKEN = {
    "no JSON": (b'{"a": ', "its header cannot be read: Expecting value"),
    "no object": (b"[1, 2]", "it is a list, no object"),
    "no UTF-8": (b'{"\xff": 1}', "codec can't decode"),
    "a name twice": (b'{"a": 1, "a": 2}', "'a' stands in it twice"),
    "nested": (b'{"a": ' + b"[" * 100_000, "nested too deep"),
    "no entry": ({"a": 3}, "of 'a' it says 3; want a dtype, a shape and two offsets"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, "of 'a' it says"),
    "a negative size": ({"a": {**F32, "shape": [-2]}}, "of 'a' it says"),
    "a size that is no number": ({"a": {**F32, "shape": [True, 2]}}, "of 'a' it says"),
    "a wrong size": ({"a": {**F32, "shape": [3]}}, "'a' (3,) F32 cannot have 8 bytes"),
    "a huge size": ({"a": {**F32, "shape": [2**40, 2**40]}}, "'a' (1099511627776, 1099511627776) F32 cannot have 8"),
    "a wrong dtype": ({"a": {**F32, "dtype": "F64"}}, "'a' (2,) F64 cannot have 8 bytes"),
    "no such dtype": ({"a": {**F32, "dtype": "F33"}, "b": I64}, "F33"),
    "offsets the other way round": ({"a": {**F32, "data_offsets": [8, 0]}}, "cannot have -8 bytes"),
    "one offset": ({"a": {**F32, "data_offsets": [8]}}, "want a dtype, a shape and two offsets"),
    "overlapping": (
        {"a": F32, "b": {**I64, "data_offsets": [4, 12]}},
        "'b' begins at byte 4, where the tensor before it ends at 8",
    ),
    "the same bytes twice": ({"a": F32, "b": F32}, "'b' begins at byte 0, where the tensor before it ends at 8"),
    "a hole": ({"a": F32, "b": {**I64, "data_offsets": [12, 20]}}, "'b' begins at byte 12"),
    "cut in the tensors": ({"a": F32, "b": I64, "c": {**F32, "data_offsets": [16, 24]}}, "24 bytes, and 16 are there"),
    "more than tensors": ({"a": F32}, "its tensors should have 8 bytes, and 16 are there"),
    "metadata that are no texts": ({"__metadata__": {"a": 1}, **TWO}, "its metadata are no texts"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_not_true_of_itself_is_refused(tmp_path: Path, case: str) -> None:
    header, why = BROKEN[case]
    path = written(tmp_path / "x.safetensors", header, bytes(16))
    with pytest.raises(TransferError, match=re.escape(why)) as caught:
        read_safetensors(path)
    assert str(caught.value).startswith(f"load: {str(path)!r} is no whole safetensors file: ")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"\x01\x02", "too short"),
        (b"\x40" + bytes(7) + b'{"a"', "it has 12 bytes, and its header alone should have 64"),
        (
            (2**62).to_bytes(8, "little") + b"{}",
            "it has 10 bytes, and its header alone should have 4611686018427387904",
        ),
        (b"\xff" * 8 + b"{}", "it has 10 bytes, and its header alone should have 18446744073709551615"),
    ],
)
def test_a_length_that_cannot_be(tmp_path: Path, text: bytes, why: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(text)
    with pytest.raises(TransferError, match=f"no whole safetensors file: {why}"):
        read_safetensors(tmp_path / "x.safetensors")


def test_every_cut_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.arange(4.0), "b": torch.arange(3)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "y.safetensors").write_bytes(whole[:length])
        with pytest.raises(TransferError, match="no whole safetensors file"):
            read_safetensors(tmp_path / "y.safetensors")


def test_a_header_longer_than_the_package_reads(tmp_path: Path) -> None:
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)  # without writing it
    with pytest.raises(TransferError, match="a header of 200000000 bytes is too long"):
        read_safetensors(tmp_path / "x.safetensors")
