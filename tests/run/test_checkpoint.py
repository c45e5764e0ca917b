from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from torch import Tensor

import ttransfer as tt
from ttransfer.core import _tree as tree
from ttransfer.run import checkpoints, latest, load, save

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


class Moments(NamedTuple):
    mu: dict[str, Tensor]
    count: Tensor


def state_of(seed: int = 0, **changes: Any) -> tt.State:
    """A state with all that one may hold: dots in names, tuples, lists, empty trees, 0-d leaves."""
    g = torch.Generator().manual_seed(seed)

    def weights(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    state = tt.State(
        trainable={"student": {"layer4.0.weight": weights(4, 3), "fc.bias": weights(4)}, "terms": {}},
        frozen={"teacher": {"fc.weight": weights(2, 2).to(torch.bfloat16)}},
        buffers={"student": {"bn.num_batches_tracked": torch.tensor(seed)}},
        terms={"bank": (weights(2).double(), [torch.tensor([True, False])])},
        opt=((), Moments({"fc.bias": weights(4)}, torch.tensor(7)), {}),
        ema={},
        hyper={"kd.weight": torch.tensor(0.1 + seed, dtype=torch.float64)},
        step=torch.tensor(10 + seed),
        seed=torch.tensor(seed),
    )
    return state._replace(**changes)


def bits(x: Tensor) -> list[int]:
    return x.contiguous().reshape(-1).view(torch.uint8).tolist() if x.numel() else []


def assert_same(found: Any, wanted: Any) -> None:
    assert list(tree.paths(found, "/")) == list(tree.paths(wanted, "/"))
    for a, b in zip(tree.leaves(found), tree.leaves(wanted), strict=True):
        assert (a.dtype, a.shape, a.device, bits(a)) == (b.dtype, b.shape, b.device, bits(b))


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    extra = {"accuracy": 0.5, "place": {"source": (1, b"x")}}
    path = save(tmp_path / "runs" / "best", state_of(1), extra=extra)
    assert sorted(p.name for p in path.iterdir()) == ["state.json", "state.safetensors"]
    assert [p.name for p in path.parent.iterdir()] == ["best"]
    found, kept = load(path, state_of(2))
    assert_same(found, state_of(1))
    assert type(found) is tt.State
    assert type(found.opt[1]) is Moments
    assert kept == extra


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0), (3, 5)], ids=str)
def test_every_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    raw = torch.randint(0, 2, (*shape, 16), dtype=torch.uint8) * (1 if dtype == torch.bool else 255)
    x = raw[..., : dtype.itemsize].contiguous().view(dtype).reshape(shape)  # negative zeros and odd NaNs too
    found, _ = load(save(tmp_path / "c", {"x": x}), {"x": torch.empty_like(x)})
    assert_same(found, {"x": x})


def test_order_follows_the_template(tmp_path: Path) -> None:
    a, b = torch.ones(2), torch.zeros(3)
    path = save(tmp_path / "c", {"b": b, "a": {"z": a, "y": b}})
    found, _ = load(path, {"a": {"y": b, "z": a}, "b": b})
    assert list(tree.paths(found)) == ["a.y", "a.z", "b"]
    assert torch.equal(found["a"]["z"], a)


def test_shared_and_expanded_leaves_come_back_apart(tmp_path: Path) -> None:
    x = torch.arange(6.0)
    given = {"a": x, "b": x, "c": x[1:3], "d": x[:1].expand(4), "e": x.reshape(2, 3).T, "f": torch.zeros(0)}
    found, _ = load(save(tmp_path / "c", given), given)
    assert_same(found, given)
    storages = [leaf.untyped_storage() for leaf in found.values()]
    assert len({s.data_ptr() for s in storages if s.nbytes()}) == 5
    assert all(s.nbytes() == leaf.numel() * 4 for s, leaf in zip(storages, found.values(), strict=True))


def test_strides_are_kept_because_kernels_follow_them(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    found, _ = load(save(tmp_path / "c", {"x": x}), {"x": torch.empty(2, 3, 4, 5)})
    assert found["x"].stride() == x.stride()
    assert torch.equal(found["x"], x)


def test_a_leaf_that_needs_a_gradient(tmp_path: Path) -> None:
    x = torch.ones(2, requires_grad=True)
    found, _ = load(save(tmp_path / "c", {"x": x}), {"x": x})
    assert not found["x"].requires_grad


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads((path / "state.json").read_text())
    change(found)
    (path / "state.json").write_text(json.dumps(found))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "tensors truncated": (lambda p: cut(p / "state.safetensors"), r"state\.safetensors' is truncated or changed"),
    "tensors empty": (lambda p: (p / "state.safetensors").write_bytes(b""), r"safetensors' is truncated or changed"),
    "tensors gone": (lambda p: (p / "state.safetensors").unlink(), r"state\.safetensors' is truncated or changed"),
    "a bit of a weight": (lambda p: flip(p / "state.safetensors", -3), r"state\.safetensors' is truncated or changed"),
    "a bit of the header": (lambda p: flip(p / "state.safetensors", 9), r"safetensors' is truncated or changed"),
    "structure truncated": (lambda p: cut(p / "state.json"), r"state\.json' is truncated or changed: .*column"),
    "structure gone": (lambda p: (p / "state.json").unlink(), r"is no checkpoint of this library: it has no state"),
    "structure of another": (lambda p: edit(p, dict.clear), r"is no checkpoint of this library: format None, not 'tt"),
    "structure a list": (lambda p: (p / "state.json").write_text("[]"), r"is no checkpoint of this library: format No"),
    "not text": (lambda p: (p / "state.json").write_bytes(b"\xff\xfe"), r"state\.json' is truncated or changed"),
    "an extra changed": (lambda p: edit(p, lambda f: f["extra"].update(epoch=9)), r"state\.json' is changed: its che"),
    "a newer format": (lambda p: edit(p, lambda f: f.update(format="ttransfer.checkpoint/2")), r"checkpoint/2', not"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    path = save(tmp_path / "step-7", state_of(), extra={"epoch": 3})
    damage(path)
    with pytest.raises(tt.TransferError, match=rf"^load: '.*step-7.*{message}"):
        load(path, state_of())


def test_every_flipped_byte_of_a_small_checkpoint_is_refused(tmp_path: Path) -> None:
    like = {"w": torch.ones(2), "step": torch.tensor(3)}
    path = save(tmp_path / "c", like, extra={"n": 1})
    for file in path.iterdir():
        whole = file.read_bytes()
        for at in range(len(whole)):
            flip(file, at)
            try:
                found, extra = load(path, like)
            except tt.TransferError:
                continue
            finally:
                file.write_bytes(whole)
            # White space in the JSON carries nothing.
            assert (file.name, extra, bits(found["w"]), int(found["step"])) == (
                "state.json",
                {"n": 1},
                bits(like["w"]),
                3,
            )


W = torch.zeros(4, 3)
MISFITS: dict[str, tuple[Any, Any, str]] = {
    "shape": (
        {"fc.weight": W},
        {"fc.weight": W.T},
        r"'net/fc\.weight' expected float32 \(3, 4\), found float32 \(4, 3\)",
    ),
    "dtype": ({"w": W}, {"w": W.double()}, r"'net/w' expected float64 \(4, 3\), found float32 \(4, 3\)$"),
    "missing": (
        {"fc.weight": W},
        {"fc.weight": W, "fc.weights": W},
        r"'net/fc\.weights' expected float32 \(4, 3\), found nothing; did you mean 'net/fc\.weight'\?",
    ),
    "unexpected": ({"w": W, "b": W}, {"w": W}, r"'net/b' found, not expected; did you mean 'net/w'\?"),
    "many": ({}, dict.fromkeys("abcde", W), r"'net/a' .*; 'net/b' .*; 'net/c' .* \(5 keys in all\)$"),
    "empty": ({"w": W}, {}, r"'net/w' found, not expected; there are none$"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_checkpoint_of_another_shape_is_refused_in_one_error(name: str, tmp_path: Path) -> None:
    saved, like, message = MISFITS[name]
    path = save(tmp_path / "c", {"net": saved})
    with pytest.raises(tt.TransferError, match=rf"^load: '.*c' does not fit the template: {message}"):
        load(path, {"net": like})


def test_no_checkpoint_names_the_nearest(tmp_path: Path) -> None:
    save(tmp_path / "step-00000010", {})
    with pytest.raises(tt.TransferError, match=r"no checkpoint at '.*step-0000001'; did you mean 'step-00000010'\?"):
        load(tmp_path / "step-0000001", {})


BAD_STATES: dict[str, tuple[Any, str]] = {
    "a number": ({"step": 3}, r"^save: 'step' is a int; a state holds tensors only"),
    "a path twice": (
        {"a": {"b": W}, "a/b": W},
        r"^save: two leaves of the state have one path; no key may",
    ),
    "complex128": ({"w": W.to(torch.complex128)}, r"^save: safetensors cannot store this state: .*complex128"),
    "sparse": ({"w": torch.eye(2).to_sparse()}, r"^save: 'w' is torch\.sparse_coo; a state holds dense tensors only"),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_a_state_that_cannot_be_stored(name: str, tmp_path: Path) -> None:
    state, message = BAD_STATES[name]
    with pytest.raises(tt.TransferError, match=message):
        save(tmp_path / "c", state)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_other_peoples_files_are_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    if kind == "directory":
        path.mkdir()
        (path / "thesis").write_text("x")
    else:
        path.write_text("x")
    with pytest.raises(tt.TransferError, match=r"^save: '.*mine' is there and is no checkpoint"):
        save(path, {})
    assert path.exists()
    save(tmp_path / "free", {})


def test_an_empty_directory_may_become_a_checkpoint(tmp_path: Path) -> None:
    assert load(save(tmp_path, {"w": W}), {"w": W})[1] == {}


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "c", state_of(), extra={"place": (1, torch.ones(2))})

    def forbidden(*args: Any, **keywords: Any) -> Any:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    load(path, state_of())
    shutil.copy(Path(__file__), path / "state.safetensors")
    with pytest.raises(tt.TransferError):
        load(path, state_of())


def test_the_tensors_can_be_read_by_others(tmp_path: Path) -> None:
    path = save(tmp_path / "c", state_of())
    found = safetensors.torch.load_file(path / "state.safetensors")
    assert torch.equal(found["trainable/student/layer4.0.weight"], state_of().trainable["student"]["layer4.0.weight"])


def test_listing(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "none") == []
    assert latest(tmp_path) is None
    for name in ("step-9", "step-00000010", "best", ".step-11.new", "step-x"):
        save(tmp_path / name, {})
    assert [path.name for path in checkpoints(tmp_path)] == ["step-9", "step-00000010"]
    assert latest(tmp_path) == tmp_path / "step-00000010"
