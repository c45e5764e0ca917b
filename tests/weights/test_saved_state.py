"""A net out of what tt.save wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ttransfer as tt
from ttransfer._errors import TransferError


def state(*, nets: tuple[str, ...] = ("student", "teacher"), slot: str = "student") -> dict[str, Any]:
    params = {"bn.weight": torch.ones(2), "fc.weight": torch.ones(3, 2)}
    return {
        "trainable": {nets[0]: params, "terms": {"critic": {"w": torch.ones(1)}}},
        "frozen": {net: {f"{net}.b": torch.zeros(2)} for net in nets},
        "buffers": {slot: {"bn.running_mean": torch.zeros(2)}},
        "opt": {"mu": params},
        "step": torch.tensor(3),
    }


def test_a_net_is_its_parameters_and_buffers(tmp_path: Path) -> None:
    tt.save(tmp_path / "best", state())
    found = tt.weights.load(tmp_path / "best", of="student")
    assert list(found) == ["bn.running_mean", "bn.weight", "fc.weight", "student.b"]
    assert list(tt.weights.load(tmp_path / "best", of="teacher")) == ["teacher.b"]


def test_a_real_state_goes_into_a_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    small = tt.term(lambda output: output.square().mean(), "net(source)")
    step = tt.step({"net": tt.functional(net)}, tt.optim.sgd(0.1), trainable=["net"], small=small)
    batch = {"source": {"x": torch.randn(8, 3)}}
    trained, _ = step(step.init(batch, seed=0), batch)
    tt.save(tmp_path / "best", trained)
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    tt.weights.transfer(tt.weights.load(tmp_path / "best"), other, tt.weights.match_by_name())
    wanted = {**trained.trainable["net"], **trained.buffers["net"]}
    assert all(torch.equal(x, wanted[name]) for name, x in other.state_dict().items())


def test_buffers_of_a_domain_are_chosen_with_it(tmp_path: Path) -> None:
    tt.save(tmp_path / "best", state(slot="student(target)"))
    assert "bn.running_mean" in tt.weights.load(tmp_path / "best", of="student(target)")
    with pytest.raises(TransferError, match=re.escape("no 'student'; did you mean 'student(target)'?")):
        tt.weights.load(tmp_path / "best", of="student")


def test_which_net_is_not_guessed(tmp_path: Path) -> None:
    tt.save(tmp_path / "best", state())
    why = "is a State of tt.save, which tt.load restores; its nets are 2; say which with of=: 'student', 'teacher'"
    with pytest.raises(TransferError, match=re.escape(why)):
        tt.weights.load(tmp_path / "best")
    with pytest.raises(TransferError, match="its nets are 2, and no 'techer'; did you mean 'teacher'"):
        tt.weights.load(tmp_path / "best", of="techer")
    tt.save(tmp_path / "alone", state(nets=("student",)))
    assert "fc.weight" in tt.weights.load(tmp_path / "alone")


@pytest.mark.parametrize("text", ["{}", '{"format": "other/1"}', "[", ""])
def test_a_folder_that_only_looks_like_one(tmp_path: Path, text: str) -> None:
    tt.save(tmp_path / "best", state())
    (tmp_path / "best" / "state.json").write_text(text)
    with pytest.raises(TransferError, match=r"has a state\.json that is not of this library"):
        tt.weights.load(tmp_path / "best", of="student")


def test_a_folder_of_runs_says_what_is_there(tmp_path: Path) -> None:
    tt.save(tmp_path / "step-00000003", state())
    with pytest.raises(TransferError, match="has no checkpoint; there are: step-00000003"):
        tt.weights.load(tmp_path)
    structure = json.loads((tmp_path / "step-00000003" / "state.json").read_text())
    assert structure["format"].startswith("ttransfer.checkpoint/")  # what net_of looks for
