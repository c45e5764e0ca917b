"""Golden files on disk: whole or not there, read back to the bit, and refused in one line where they are bad."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.testing import loss_trial
from ttransfer.testing._golden import check_golden, write_golden
from ttransfer.testing._golden_file import decoded, encoded, golden_read, golden_written, numbers


def squared(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return (student - teacher.detach()).square().mean()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 3,
        torch.tensor([1.0, 2.0, -0.0], dtype=torch.float64),
        torch.tensor([math.pi, 5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf], dtype=torch.float64),
        torch.tensor([[0, 3], [-100, 1]]),
        torch.tensor([True, False]),
        torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    ],
    ids=["plain", "whole", "extreme", "labels", "mask", "maps"],
)
def test_tensors_come_back_to_the_bit(tensor: torch.Tensor, tmp_path: Path) -> None:
    golden_written(tmp_path / "a.json", "a", ["x"], {"plain": {"inputs": {"x": encoded(tensor)}}})
    back = decoded(golden_read(tmp_path / "a.json", "a")["cases"]["plain"]["inputs"]["x"], "x")
    assert back.dtype == tensor.dtype
    assert torch.equal(back.isnan(), tensor.isnan())
    assert torch.equal(back.nan_to_num(7.0), tensor.nan_to_num(7.0)) if back.is_floating_point() else True
    if not back.is_floating_point():
        assert torch.equal(back, tensor)


@pytest.mark.parametrize("value", [None, True, 3, 0.1, "mean"])
def test_plain_values_come_back(value: object) -> None:
    assert decoded(json.loads(json.dumps(encoded(value))), "x") == value


def test_what_the_file_cannot_hold_is_named() -> None:
    assert encoded(torch.tensor(2.0)) == {"given": "Tensor"}
    assert encoded(torch.nn.ReLU()) == {"given": "ReLU"}


def test_one_number_stands_for_all() -> None:
    assert torch.equal(numbers(0, (2, 3), "x"), torch.zeros(2, 3, dtype=torch.float64))
    assert numbers("nan", (), "x").isnan()
    with pytest.raises(TransferError, match=r"x is of shape \(2,\), and should be of \(3,\)"):
        numbers([1.0, 2.0], (3,), "x")
    for wrong in (None, "many", {"a": 1}):
        with pytest.raises(TransferError, match="x is no tensor"):
            numbers(wrong, (), "x")


def test_everybody_may_read_it(tmp_path: Path) -> None:
    golden_written(tmp_path / "a.json", "a", ["x"], {"plain": {}})
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    golden_written(path, "a", ["x"], {"plain": {}})
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TransferError, match=r"a\.json: it cannot be written: .*No space left"):
        golden_written(path, "a", ["x"], {"other": {}})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TransferError, match="it cannot be written"):
        golden_written(tmp_path / "file" / "a.json", "a", ["x"], {"plain": {}})


def changed(change: Any) -> str:
    """A good file with a change."""
    cases = {
        "plain": {
            "inputs": {"student": [[1.0, 2.0]], "teacher": [[0.0, 1.0]]},
            "value": 1.0,
            "gradients": {"student": [[1.0, 1.0]], "teacher": 0},
        }
    }
    stored = {"format": "ttransfer.golden/1", "loss": "squared", "arguments": ["student", "teacher"], "cases": cases}
    change(stored, cases["plain"])
    return json.dumps(stored)


def test_the_good_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(changed(lambda stored, plain: None))
    assert check_golden(tmp_path / "a.json", loss_trial(squared)) == ("plain",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, p: s.pop("format"), "it is no golden file, which says 'format': 'ttransfer.golden/1'"),
        (lambda s, p: s.update(format="ttransfer.golden/9"), "it is no golden file"),
        (lambda s, p: s.pop("loss"), "its 'loss' is missing or no str"),
        (lambda s, p: s.update(arguments="student"), "its 'arguments' is missing or no list"),
        (lambda s, p: s.update(cases={}), "its 'cases' is missing or no dict"),
        (lambda s, p: s.update(loss="kd"), "it is the golden file of 'kd', not of 'squared'; each has its own"),
        (lambda s, p: s.update(cases={"plain": 3}), "case 'plain' has no 'inputs'"),
        (lambda s, p: p.pop("inputs"), "case 'plain' has no 'inputs'"),
        (lambda s, p: p.pop("gradients"), "case 'plain' has no 'gradients'"),
        (lambda s, p: p.pop("value"), "plain: the value is no tensor"),
        (lambda s, p: p.update(value=[1.0, 2.0]), "plain: the value is of shape (2,), and should be of ()"),
        (lambda s, p: p["inputs"].pop("student"), "the inputs of case 'plain' have no 'student'"),
        (lambda s, p: p["gradients"].pop("student"), "the gradients of case 'plain' have no 'student'"),
        (lambda s, p: p["inputs"].update(student=[[1.0], [1.0, 2.0]]), "plain: student is no tensor"),
        (lambda s, p: p["inputs"].update(student=[["one"]]), "plain: student is no tensor"),
        (lambda s, p: p["gradients"].update(student=[1.0]), "plain: the gradient of student is of shape (1,)"),
    ],
)
def test_a_bad_file_is_one_clear_error(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(changed(change))
    with pytest.raises(TransferError, match=re.escape(message)) as caught:
        check_golden(path, loss_trial(squared))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "it is not JSON: "),
        (b"", "it is not JSON: "),
        (b"[1]", "it is no golden file"),
        (b"\xff", "cannot be read"),
    ],
)
def test_what_is_no_golden_file_is_not_written_over(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for action in (check_golden, write_golden):
        with pytest.raises(TransferError, match=message):
            action(path, loss_trial(squared))
    assert path.read_bytes() == content


def test_no_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="there is no such file; write it with ttransfer check --golden"):
        check_golden(tmp_path / "a.json", loss_trial(squared))
    with pytest.raises(TransferError, match="it cannot be read"):
        check_golden(tmp_path, loss_trial(squared))
