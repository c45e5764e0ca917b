"""Reading checkpoints: every make comes back as it was saved, and what is none is told."""

from __future__ import annotations

import json
import os
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.testing.strategies import params

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
)
CAST = (torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64)
Save = Callable[[dict[str, Tensor], Path], Path]


def safetensors(tensors: dict[str, Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "x.safetensors")
    return folder / "x.safetensors"


def saving(suffix: str, wrap: Callable[[dict[str, Tensor]], Any] = lambda x: x, **options: Any) -> Save:
    def save(tensors: dict[str, Tensor], folder: Path) -> Path:
        torch.save(wrap(tensors), folder / f"x{suffix}", **options)
        return folder / f"x{suffix}"

    return save


def sharded(suffix: str) -> Save:
    def save(tensors: dict[str, Tensor], folder: Path) -> Path:
        where: dict[str, str] = {}
        names = list(tensors)
        for i in range(2):
            some = {name: tensors[name] for name in names[i::2]}
            file = f"model-0000{i + 1}-of-00002{suffix}"
            where |= dict.fromkeys(some, file)
            if some:
                (save_file if suffix == ".safetensors" else torch.save)(some, folder / file)
        (folder / f"model{suffix}.index.json").write_text(json.dumps({"weight_map": where}))
        return folder

    return save


SAVES: dict[str, Save] = {
    "safetensors": safetensors,
    "pt": saving(".pt"),
    "legacy": saving(".pth", _use_new_zipfile_serialization=False),
    "wrapped": saving(".ckpt", lambda x: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in x.items()}}),
    "safetensors shards": sharded(".safetensors"),
    "bin shards": sharded(".bin"),
}


def bits(x: Tensor) -> Any:
    return x.dtype, x.shape, x.contiguous().reshape(-1).view(torch.uint8).tolist() if x.numel() else []


@st.composite
def tensors(draw: st.DrawFn, cast: tuple[torch.dtype, ...]) -> dict[str, Tensor]:
    found = draw(params(leaves=(1, 5), shapes=((), (2,), (0,), (2, 3), (2, 0, 1)), dtypes=DTYPES))
    more = draw(st.lists(st.sampled_from(cast), min_size=len(found), max_size=len(found)))
    keep = draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found)))
    return {
        name: x if kept else x.float().abs().to(dtype)
        for (name, x), dtype, kept in zip(found.items(), more, keep, strict=True)
    }


@pytest.mark.parametrize("how", SAVES)
def test_what_was_saved_comes_back(how: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    # torch itself cannot read these from its format of old.
    drawn = tensors(CAST[:2] if how == "legacy" else CAST)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(drawn)
    def check(tree: dict[str, Tensor]) -> None:
        found = tt.weights.load(SAVES[how](tree, tmp_path_factory.mktemp("x")))
        assert {name: bits(x) for name, x in found.items()} == {name: bits(x) for name, x in tree.items()}
        if how in ("pt", "legacy", "wrapped"):
            assert list(found) == list(tree)
        if "safetensors" in how:
            assert list(found) == sorted(tree)

    check()


@pytest.mark.parametrize("how", ["pt", "legacy", "wrapped"])
def test_tied_weights_stay_tied(how: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    found = tt.weights.load(SAVES[how](net.state_dict(), tmp_path))
    assert found["0.weight"] is found["1.weight"]
    assert found["0.bias"] is not found["1.bias"]
    with torch.device("meta"):
        other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tt.weights.transfer(found, other)
    assert other[0].weight.data_ptr() == other[1].weight.data_ptr()


def test_a_module_on_meta_takes_the_mapped_tensors(tmp_path: Path) -> None:
    net = nn.Linear(64, 64)
    found = tt.weights.load(safetensors(net.state_dict(), tmp_path))
    with torch.device("meta"):
        other = nn.Linear(64, 64)
    tt.weights.transfer(found, other)
    assert other.weight.data_ptr() == found["weight"].data_ptr()
    assert torch.equal(other.weight, net.weight)


def test_what_is_done_is_told(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "ema": {"module.w": torch.ones(2)}, "net": {"module.w": torch.zeros(2)}}, tmp_path / "x.pt")
    said: list[str] = []
    found = tt.weights.load(tmp_path, of="ema", tell=said.append)
    assert found["w"].sum() == 2
    where = f"load: {str(tmp_path / 'x.pt')!r}"
    assert said == [
        f"load: {str(tmp_path)!r}: took 'x.pt'",
        f"{where}: took 'ema', and not 'epoch', 'net' beside it",
        f"{where}: took 'module.' off 1 name",
    ]
    assert list(tt.weights.load(tmp_path, of="ema", strip=())) == ["module.w"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.complex64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_where_asked(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    x = torch.ones(2, 3)
    x[1, 1] = value
    path = safetensors({"good": torch.ones(2), "count": torch.ones(2).long(), "w": x.to(dtype)}, tmp_path)
    assert tt.weights.load(path)["w"].dtype == dtype
    with pytest.raises(TransferError, match=re.escape("'w' (2, 3) is not finite")):
        tt.weights.load(path, finite=True)


def test_the_finite_pass_where_asked(tmp_path: Path) -> None:
    wide = torch.ones(1).expand(2**40)  # of which one number is in the file
    good = {"w": torch.full((2,), 65504.0).half(), "i": torch.ones(1).long(), "e": torch.empty(0), "wide": wide}
    torch.save(good, tmp_path / "x.pt")
    assert list(tt.weights.load(tmp_path / "x.pt", finite=True)) == list(good)


FOREIGN = {
    "empty": (b"", "is empty"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a pointer of Git LFS"),
    "a page": (b"<!DOCTYPE html><html>404</html>", "is a web page or XML"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "is an HDF5 file"),
    "GGUF": (b"GGUF" + bytes(60), "is a GGUF file"),
    "NumPy": (b"\x93NUMPY" + bytes(60), "is a NumPy array"),
    "gzip": (b"\x1f\x8b" + bytes(60), "is compressed by gzip"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
@pytest.mark.parametrize("case", FOREIGN)
def test_what_lies_in_the_place_of_a_checkpoint_is_named(tmp_path: Path, case: str, suffix: str) -> None:
    text, why = FOREIGN[case]
    (tmp_path / f"x{suffix}").write_bytes(text)
    with pytest.raises(TransferError, match=re.escape(why)):
        tt.weights.load(tmp_path / f"x{suffix}")


def test_a_file_is_told_by_what_is_in_it(tmp_path: Path) -> None:
    tree = {"w": torch.ones(2)}
    for suffix in (".bin", ".pt", ".weights", ""):
        safetensors(tree, tmp_path).rename(tmp_path / f"y{suffix}")
        assert torch.equal(tt.weights.load(tmp_path / f"y{suffix}")["w"], tree["w"])
    saving(".pt")(tree, tmp_path).rename(tmp_path / "z.safetensors")
    with pytest.raises(TransferError, match=r"is no safetensors file, but one of torch\.save: give it its name"):
        tt.weights.load(tmp_path / "z.safetensors")


def test_what_is_not_there_is_told_with_what_is_near(tmp_path: Path) -> None:
    safetensors({"w": torch.ones(2)}, tmp_path)
    with pytest.raises(TransferError, match=r"there is no file '.*/x\.safetensor'; did you mean 'x\.safetensors'\?"):
        tt.weights.load(tmp_path / "x.safetensor")
    with pytest.raises(TransferError, match=r"there is no file '.*/no/x\.pt'; there are none"):
        tt.weights.load(tmp_path / "no" / "x.pt")
    (tmp_path / "gone.pt").symlink_to("nowhere.pt")
    with pytest.raises(TransferError, match=r"there is no file '.*/gone\.pt'"):
        tt.weights.load(tmp_path / "gone.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    with pytest.raises(TransferError, match=r"there is no file|Too many levels"):
        tt.weights.load(tmp_path / "loop.pt")


def test_a_link_is_followed(tmp_path: Path) -> None:
    safetensors({"w": torch.ones(2)}, tmp_path)
    (tmp_path / "y.pt").symlink_to("x.safetensors")
    assert list(tt.weights.load(tmp_path / "y.pt")) == ["w"]


def test_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")  # of which a read would wait for ever
    for path in (tmp_path / "x.pt", Path("/dev/zero")):
        with pytest.raises(TransferError, match="is no file, but a device"):
            tt.weights.load(path)


def test_a_folder_must_hold_one(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="has no checkpoint; there are none"):
        tt.weights.load(tmp_path)
    (tmp_path / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(TransferError, match=r"is of torch\.distributed\.checkpoint: make one file of it"):
        tt.weights.load(tmp_path)
    (tmp_path / "__0_0.distcp").unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TransferError, match=r"has no checkpoint; there are: config\.json"):
        tt.weights.load(tmp_path)
    for name in ("a.pt", "b.bin"):
        torch.save({"w": torch.ones(2)}, tmp_path / name)
    with pytest.raises(TransferError, match=r"has several checkpoints: 'a\.pt', 'b\.bin'; give one of them"):
        tt.weights.load(tmp_path)
    safetensors({"v": torch.ones(2)}, tmp_path)
    assert list(tt.weights.load(tmp_path)) == ["v"]  # safetensors first


@pytest.mark.parametrize("how", ["safetensors", "wrapped", "legacy"])
def test_changed_bytes_are_refused_or_read_as_tensors(how: str, tmp_path: Path) -> None:
    """No other error comes out, and no crash: 14 000 such files, changed by a program, were read once."""
    tree = {"a.w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).bfloat16(), "e": torch.empty(0, 2)}
    whole = SAVES[how](tree, tmp_path).read_bytes()
    places = st.integers(0, len(whole) - 1)
    changes = st.lists(st.tuples(places, st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=4)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(changes)
    def check(changes: list[tuple[int, bytes, int]]) -> None:
        text = whole
        for place, new, old in changes:
            text = text[:place] + new + text[place + old :]
        path = tmp_path / "changed"
        path.unlink(missing_ok=True)  # a mapped file must stay as it is
        path.write_bytes(text)
        try:
            found = tt.weights.load(path, finite=True)
        except TransferError:
            return
        assert all(x.clone().shape == x.shape for x in found.values())

    check()


def test_dicts_nested_as_deep_as_a_file_can_make_them(tmp_path: Path) -> None:
    """Deeper than Python's own stack, which torch.save could not write."""
    depth, inner = 100_000, b"}X\x01\x00\x00\x00d"
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        for name, data in records.items():
            deep = b"\x80\x02" + inner * depth + b"}" + b"s" * depth + b"."
            archive.writestr(name, deep if name.endswith("data.pkl") else data)
    with pytest.raises(TransferError, match="holds no tensors under names"):
        tt.weights.load(tmp_path / "y.pt")


def test_very_many_tensors(tmp_path: Path) -> None:
    """Files of very many small tensors: loading, planning and complaining stay in seconds."""
    count = 20_000
    names = [f"blocks.{i // 100}.part{i % 100}.weight" for i in range(count)]
    save_file({name: torch.full((), float(i)) for i, name in enumerate(names)}, tmp_path / "x.safetensors")
    begin = time.process_time()
    found = tt.weights.load(tmp_path / "x.safetensors")
    assert len(found) == count
    assert found[names[-1]] == count - 1
    like = {name: x for name, x in found.items() if name != names[7]}
    like |= {f"layers.{i}.part{i}.weights": torch.zeros(3) for i in range(10)}
    plan = tt.weights.match_by_name().plan(found, like)
    assert (len(plan.made), len(plan.missing), len(plan.unused)) == (count - 1, 10, 1)
    with pytest.raises(TransferError, match="10 of 20009 target tensors get nothing"):
        tt.weights.match_by_name().apply(found, like)
    with pytest.raises(TransferError, match=r"'block\.7\.part3\.weight'; did you mean 'blocks\.7\.part3\.weight'"):
        tt.weights.rename({"block.7.part3.weight": "x"}).apply(found, {})
    assert time.process_time() - begin < 30  # seconds; one or two on a quiet core
