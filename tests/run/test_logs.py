from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ttransfer as tt
from ttransfer.run._logs import row_of, writing

NAN = math.nan


def test_values_become_floats() -> None:
    values = {
        "loss": torch.tensor(0.5, dtype=torch.float64, requires_grad=True),
        "count": torch.tensor(3),
        "half": torch.tensor(0.5, dtype=torch.bfloat16),
        "fine": torch.tensor(True),
        "a": 1,
        "b": np.float32(0.25),
    }
    row = row_of(values)
    assert row == {"loss": 0.5, "count": 3.0, "half": 0.5, "fine": 1.0, "a": 1.0, "b": 0.25}
    assert all(type(value) is float for value in row.values())


def test_members_are_logged_beside_their_mean() -> None:
    assert row_of({"kd": torch.tensor([1.0, 4.0])}) == {"kd": 2.5, "kd/0": 1.0, "kd/1": 4.0}
    assert row_of({"kd.weight": torch.full((3,), 0.1, dtype=torch.float64)})["kd.weight"] == 0.1
    row = row_of({"kd": torch.tensor([NAN, 4.0, math.inf])})
    assert (row["kd"], row["kd/1"], row["kd/2"]) == (4.0, 4.0, math.inf)
    assert math.isnan(row["kd/0"])
    assert math.isnan(row_of({"kd": torch.tensor([NAN])})["kd"])


def test_a_sweep_of_an_ensemble_is_logged_by_both_numbers() -> None:
    row = row_of({"kd": torch.tensor([[1.0, 2.0], [NAN, 6.0]])})
    assert (row["kd"], row["kd/0/0"], row["kd/0/1"], row["kd/1/1"]) == (3.0, 1.0, 2.0, 6.0)
    assert math.isnan(row["kd/1/0"])


@pytest.mark.parametrize(
    ("value", "what"),
    [(torch.zeros(2, 2, 2), r"a tensor of shape \(2, 2, 2\)"), ("high", "str"), (None, "NoneType"), ({}, "dict")],
)
def test_what_is_no_number_is_named(value: Any, what: str) -> None:
    with pytest.raises(
        tt.TransferError, match=rf"^evaluate: 'accuracy' is {what}, wanted a number, or a tensor with one number"
    ):
        row_of({"accuracy": value}, "evaluate")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "log.jsonl"
    with writing(path, 0) as write:
        write(10, {"loss": 0.5, "kd": NAN})
        assert rows(path) == [{"step": 10, "loss": 0.5, "kd": None}]  # a row is in the file at once
        write(20, {"loss": 0.25, "kd": math.inf})
    assert rows(path)[1] == {"step": 20, "loss": 0.25, "kd": None}


def test_json_lines_after_the_start_are_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with writing(path, 0) as write:
        for step in (10, 20, 30):
            write(step, {"loss": float(step)})
    path.write_text(path.read_text() + '{"step": 40, "lo')  # torn by a kill
    with writing(str(path), 20) as write:
        write(30, {"loss": 31.0})
    assert [(row["step"], row["loss"]) for row in rows(path)] == [(10, 10.0), (20, 20.0), (30, 31.0)]
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("line", ["hello", "[1]", "{}", '{"step": null}'])
def test_a_foreign_file_is_left_alone(line: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    text = f'{{"step": 1}}\n{line}\n'
    path.write_text(text)
    with pytest.raises(tt.TransferError, match=r"log\.jsonl' is no log of this library: see line 2"), writing(path, 0):
        pass
    assert path.read_text() == text


def test_a_function() -> None:
    found: list[Any] = []
    with writing(lambda step, row: found.append((step, row)), 5) as write:
        write(10, {"loss": 0.5})
    assert found == [(10, {"loss": 0.5})]


def test_no_log() -> None:
    with writing(None, 0) as write:
        write(10, {"loss": 0.5})


@pytest.mark.parametrize("kind", ["suffix", "file"])
def test_a_path_of_no_known_kind(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("log.csv" if kind == "suffix" else "log")
    if kind == "file":
        path.touch()
    with (
        pytest.raises(tt.TransferError, match=r"is neither a path that ends in \.jsonl nor a directory"),
        writing(path, 0),
    ):
        pass


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "board"
    with writing(folder, 0) as write:
        write(10, {"loss": 0.5, "kd/1": 2.0})
        write(20, {"loss": 9.0})
    with writing(folder, 10) as write:
        write(20, {"loss": 0.25})
    board = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(10, 0.5), (20, 0.25)]
    assert [(event.step, event.value) for event in board.Scalars("kd/1")] == [(10, 2.0)]


def test_tensorboard_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    message = r"for TensorBoard, which is not installed: install `tensorboard`, or give a path that ends in \.jsonl"
    with pytest.raises(tt.TransferError, match=message), writing(tmp_path, 0):
        pass
