"""What is saved is loaded as it was: names, order, values, dtypes, ties; and nothing is half written."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.weights import load, match, pool, save

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32,
    torch.uint64, torch.bool,
)  # fmt: skip


def bits(x: Tensor) -> Any:
    return x.dtype, x.shape, x.contiguous().reshape(-1).view(torch.uint8).tolist() if x.numel() else []


@st.composite
def checkpoints(draw: st.DrawFn) -> dict[str, Tensor]:
    """Of any dtype and shape, transposed, strided, and some under two names, in any order."""
    names = draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=6, unique=True))
    found: dict[str, Tensor] = {}
    for name in names:
        how = draw(st.integers(0, 4))
        if how == 0 and found:
            found[name] = draw(st.sampled_from(list(found.values())))
            continue
        shape = draw(st.sampled_from([(), (0,), (3,), (2, 3), (2, 0), (1, 2, 2)]))
        x = (torch.rand(shape, dtype=torch.float64) * 9).to(draw(st.sampled_from(DTYPES)))
        found[name] = x.mT if how == 1 and x.ndim > 1 else x[::2] if how == 2 and x.ndim else x
    return found


@given(checkpoints())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Tensor]) -> None:
    path = tmp_path_factory.mktemp("x") / "x.safetensors"
    save(path, tree)
    found = load(path, strip=())
    assert list(found) == list(tree)
    for name, x in tree.items():
        assert bits(found[name]) == bits(x)
        for other, y in tree.items():
            if x.numel():
                assert (found[name] is found[other]) == (x is y)
    assert load_file(path).keys() <= tree.keys()


def tied() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[3].weight = net[2].weight
    return net


def test_others_read_it_too(tmp_path: Path) -> None:
    net, other = tied(), tied()
    save(tmp_path / "x.safetensors", net.state_dict())
    load_model(other, str(tmp_path / "x.safetensors"))
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in net.state_dict().items())
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["3.weight"] == "2.weight"


def test_an_order_of_definition_is_matched_which_save_file_loses(tmp_path: Path) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.fc, self.last = (
                nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 4)
            )  # fmt: skip

    net = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 4))
    save(tmp_path / "ours.safetensors", net.state_dict())
    save_file(net.state_dict(), tmp_path / "theirs.safetensors")
    into = Other()
    tt.weights.transfer(load(tmp_path / "ours.safetensors"), into)
    for x, y in zip(net.state_dict().values(), into.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    with pytest.raises(TransferError, match="no order was read, for in the source"):
        tt.weights.transfer(load(tmp_path / "theirs.safetensors"), Other())


def test_what_a_map_made_and_a_pool(tmp_path: Path) -> None:
    made = match().apply(tied().state_dict(), tied().state_dict())
    save(tmp_path / "x.safetensors", made)
    assert load(tmp_path)["3.weight"] is not None
    both = pool(b={"w": torch.ones(2)}, a={"w": torch.zeros(2)})
    save(tmp_path / "x.safetensors", both)
    assert list(load(tmp_path)) == ["b/w", "a/w"]


def test_parameters_views_and_lazy_conjugates(tmp_path: Path) -> None:
    x = torch.arange(6.0)
    tree = {
        "p": nn.Parameter(torch.ones(2)),
        "left": x[:4],
        "right": x[2:],
        "conj": torch.tensor([1 + 2j]).conj(),
        "wide": torch.ones(1).expand(3),
        "grad": (torch.ones(2, requires_grad=True) * 2),
    }
    save(tmp_path / "x.safetensors", tree)
    found = load(tmp_path / "x.safetensors")
    for name, y in tree.items():
        assert torch.equal(found[name], y.detach())
        assert not found[name].requires_grad


@pytest.mark.parametrize(
    "order", [{"names": ["a"]}, {"names": [1, 2]}, {"names": ["a", "a"]}, {"names": "ab"}, {}, [], "{"]
)
def test_a_note_that_is_not_of_these_tensors_is_passed_over(tmp_path: Path, order: Any) -> None:
    """As another program leaves it that takes a tensor out and hands the notes on."""
    note = order if isinstance(order, str) else json.dumps(order)
    save_file({"b": torch.ones(1), "a": torch.ones(1)}, tmp_path / "x.safetensors", {"ttransfer.order": note})
    assert list(load(tmp_path / "x.safetensors")) == ["a", "b"]


def test_names_that_notes_have(tmp_path: Path) -> None:
    x = torch.ones(2)
    for tree in ({"z": x, "format": x}, {"format": x, "ttransfer.order": x, "a": x}):
        save(tmp_path / "x.safetensors", tree)
        found = load(tmp_path / "x.safetensors")
        assert list(found) == list(tree)
        assert all(torch.equal(y, x) for y in found.values())


def test_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "x.safetensors"
    save(path, {"w": torch.zeros(1000)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    before = load(path)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            save(path, {"w": torch.ones(1000)})
    assert os.listdir(path.parent) == ["x.safetensors"]
    assert load(path)["w"].sum() == 0
    save(path, {"w": torch.ones(1000)})
    assert load(path)["w"].sum() == 1000
    assert before["w"].sum() == 0  # who has the old one mapped keeps it
    save(path, load(path))  # over the file that is being read
    assert load(path)["w"].sum() == 1000


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.safetensors").symlink_to("x.safetensors")
    save(tmp_path / "link.safetensors", {"w": torch.ones(1)})
    assert (tmp_path / "link.safetensors").is_symlink()
    assert not (tmp_path / "x.safetensors").is_symlink()


W = torch.ones(2)


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("x.pt", {"w": W}, "x.pt' would be a safetensors file: name it 'x.safetensors'"),
        ("x", {"w": W}, "x' would be a safetensors file: name it 'x.safetensors'"),
        ("x.safetensors", {}, "x.safetensors': there are no tensors"),
        (
            "x.safetensors",
            nn.Linear(2, 2),
            "save: wanted a checkpoint, name -> tensor, got Linear; its weights are its",
        ),
        ("x.safetensors", {"w": W, "epoch": 3}, "save: wanted a checkpoint, name -> tensor, got int under 'epoch'"),
        ("x.safetensors", {"a": {"w": W}}, "save: wanted a checkpoint, name -> tensor, got"),
        ("x.safetensors", {"w": W.to("meta")}, "'w' (2,) is meta, without values, for which safetensors has no form"),
        ("x.safetensors", {"w": W.to_sparse()}, "'w' (2,) is torch.float32, torch.sparse_coo, for which"),
        ("x.safetensors", {"w": W.to(torch.complex128)}, "'w' (2,) is torch.complex128, torch.strided, for which"),
        ("x.safetensors", {3: W}, "3 cannot name a tensor"),
        ("x.safetensors", {"__metadata__": W}, "'__metadata__' cannot name a tensor"),
        ("folder.safetensors", {"w": W}, "folder.safetensors' cannot be written: Is a directory"),
        ("file/x.safetensors", {"w": W}, "x.safetensors' cannot be written: "),
    ],
)
def test_refusals(tmp_path: Path, name: str, tensors: Any, message: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(TransferError, match=re.escape(message)):
        save(tmp_path / name, tensors)
    assert sorted(os.listdir(tmp_path)) == before
