"""What a process that is killed at any moment leaves.

Each change of the file system is cut off before it, in the middle and after it; `save` and `prune` have no clean-up
code on these ways, so an exception leaves what a kill would.
"""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ttransfer.run import _checkpoint, checkpoints, latest, load, save


class Killed(BaseException):
    pass


def dying_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Make the file system die at a moment; return how many moments have passed."""
    passed = 0

    def mortal(place: Any, name: str, half: Callable[..., object] | None) -> None:
        real = getattr(place, name)

        def call(*args: Any, **keywords: Any) -> Any:
            nonlocal passed
            for part in (None, half, real):
                result = part(*args, **keywords) if part else None
                passed += 1
                if passed == moment:
                    raise Killed
            return result

        monkeypatch.setattr(place, name, call)

    def half_file(tensors: Any, path: Path) -> None:
        path.write_bytes(safetensors.torch.save(tensors)[:-3])

    def half_text(path: Path, text: str, **keywords: Any) -> None:
        path.write_bytes(text.encode()[:-3])

    def half_tree(path: Path, **keywords: Any) -> None:
        for file in sorted(path.glob("*"))[:1]:
            os.unlink(file)

    mortal(_checkpoint, "save_file", half_file)
    mortal(pathlib.Path, "write_text", half_text)
    mortal(pathlib.Path, "rename", None)
    mortal(pathlib.Path, "mkdir", None)
    mortal(os, "fsync", None)
    mortal(shutil, "rmtree", half_tree)
    return lambda: passed


def value(path: Path) -> float:
    return float(load(path, {"w": torch.tensor(0.0)})[0]["w"])


def survive(act: Callable[[Path], object], check: Callable[[Path], object], tmp_path: Path) -> int:
    """Kill `act` at each of its moments, with `check` after each; return how many there are."""
    moment = 0
    while True:
        moment += 1
        folder = tmp_path / f"moment{moment}"
        save(folder / "step-1", {"w": torch.tensor(1.0)})
        with pytest.MonkeyPatch.context() as patch:
            passed = dying_at(moment, patch)
            try:
                act(folder)
            except Killed:
                pass
            else:
                return passed()
        check(folder)


def test_killed_at_any_moment_all_that_is_listed_is_whole(tmp_path: Path) -> None:
    def act(folder: Path) -> None:
        save(folder / "step-2", {"w": torch.tensor(2.0)})
        _checkpoint.prune(folder, 1)

    def check(folder: Path) -> None:
        assert latest(folder)
        for path in checkpoints(folder):
            assert value(path) == int(path.name[-1])
        save(folder / "step-3", {"w": torch.tensor(3.0)})
        _checkpoint.prune(folder, 1)
        assert [path.name for path in folder.iterdir()] == ["step-3"]

    assert survive(act, check, tmp_path) > 20


def test_killed_at_any_moment_an_overwritten_checkpoint_is_the_old_or_the_new(tmp_path: Path) -> None:
    seen: set[float] = set()

    def check(folder: Path) -> None:
        seen.add(value(folder / "step-1"))
        save(folder / "step-1", {"w": torch.tensor(3.0)})
        assert value(folder / "step-1") == 3.0
        assert [path.name for path in folder.iterdir()] == ["step-1"]

    assert survive(lambda folder: save(folder / "step-1", {"w": torch.tensor(2.0)}), check, tmp_path) > 20
    assert seen == {1.0, 2.0}


def test_all_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, pathlib.Path.rename

    def flushed(descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        events.extend(path.name for path in (tmp_path, *tmp_path.rglob("*")) if path.stat().st_ino == inode)
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(pathlib.Path, "rename", renamed)
    save(tmp_path / "c", {"w": torch.zeros(4, 3)})
    assert events == ["state.safetensors", "state.json", ".c.new", "rename", tmp_path.name]
