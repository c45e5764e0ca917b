"""Laws as pytest cases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ttransfer as tt
from ttransfer.testing import parametrize_with_checks

FILE = """
import torch
from ttransfer.testing import loss_trial, parametrize_with_checks

def half(student, teacher):
    return ((student - teacher) ** 2).mean() / 2

@parametrize_with_checks([half, loss_trial(half, expected_failed_checks={"detached": "it is mutual"}, name="mutual")])
def test_losses(check):
    check()
"""


def test_a_users_file_is_collected_selected_and_judged(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(FILE)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "detached or scalar",
            "-rA",
            "test_mine.py",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 3 passed" in done.stdout, done.stdout
    assert "FAILED test_mine.py::test_losses[half-detached]" in done.stdout
    assert "PASSED test_mine.py::test_losses[mutual-detached]" in done.stdout
    assert "teacher gets a gradient" in done.stdout


def test_two_parts_of_one_name_are_refused() -> None:
    with pytest.raises(tt.TransferError, match="two parts are called 'kd'"):
        parametrize_with_checks([tt.losses.kd, tt.losses.kd])
