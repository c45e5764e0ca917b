"""What may be typed, what it costs, and what comes back where it is wrong."""

from __future__ import annotations

import importlib
import json
import pathlib
import subprocess
import sys
import tomllib

import pytest

from ttransfer.cli import main
from ttransfer.cli._app import _with_value

ROOT = pathlib.Path(__file__).parents[2]


def test_the_script_of_the_package_is_main() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, name = scripts["ttransfer"].split(":")
    assert getattr(importlib.import_module(module), name) is main


def test_help_is_quick_for_it_imports_no_torch() -> None:
    code = """
        import json, sys
        from ttransfer.cli import main
        codes = [main(["--help"]), main(["check", "--help"]), main(["check", "--no-such-option"])]
        print(json.dumps([codes, [m for m in ("torch", "hypothesis", "numpy") if m in sys.modules]]))
    """
    command = [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    codes, slow = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, 0, 2]
    assert not slow
    assert "--golden [FILE]" in done.stdout
    assert "No such option" in done.stderr
    assert not {"│", "╭", "\x1b"} & set(done.stdout + done.stderr)  # plain text


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "check" in "".join(capsys.readouterr())


BARE = "--golden=tests/golden"


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["check", "a:b", "--golden"], ["check", "a:b", BARE]),
        (["check", "--golden", "a.py:b"], ["check", BARE, "a.py:b"]),
        (["check", "a:b", "--golden", "--update"], ["check", "a:b", BARE, "--update"]),
        (["check", "a:b", "--golden", "b.json"], ["check", "a:b", "--golden", "b.json"]),
        (["check", "a:b", "--golden", "folder", "--update"], ["check", "a:b", "--golden", "folder", "--update"]),
        (["check", "--golden", "c:/b.json", "a:b"], ["check", "--golden", "c:/b.json", "a:b"]),
        (["check", "--golden=b.json", "a:b"], ["check", "--golden=b.json", "a:b"]),
    ],
)
def test_the_file_of_golden_may_be_left_out(typed: list[str], read: list[str]) -> None:
    assert _with_value(typed) == read


def test_arguments_come_from_the_process_unless_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["anything", "check"])
    assert main() == 2
    assert "no TARGET" in capsys.readouterr().err
