"""docs/laws.md, from top to bottom: its files are written, its Python runs, its commands say what the page says."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support import laws_table
from ttransfer.cli import main

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# ([\w/]+\.py)\n")
LIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file is written over within one tick of its clock
    monkeypatch.setenv("COLUMNS", "80")
    yield tmp_path
    forget(tmp_path)


def forget(folder: pathlib.Path) -> None:
    """Unimport what is in a folder."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def run(command: str, folder: pathlib.Path) -> str:
    """Run a line of a console; return what it printed."""
    program, *arguments = shlex.split(command)
    if program == "ttransfer":
        forget(folder)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            main(arguments)
        return out.getvalue()
    assert program == "pytest", command
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""},
    )
    return done.stdout + done.stderr


def same(wanted: str, found: str) -> None:
    checker = doctest.OutputChecker()
    example = doctest.Example("", wanted)
    assert checker.check_output(wanted, found, LIKE), checker.output_difference(example, found, LIKE)


def test_the_page_does_what_it_says(folder: pathlib.Path) -> None:
    space: dict[str, object] = {"__name__": "laws"}
    printed = ""
    blocks = BLOCK.findall(laws_table.PAGE.read_text())
    assert {kind for kind, _ in blocks} == {"python", "console", "text"}
    for i, (kind, text) in enumerate(blocks):
        if kind == "text":
            same(text, printed)
        elif kind == "console":
            for command, wanted in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                same(wanted, run(command, folder))
        elif name := FILE.match(text):
            (folder / name[1]).write_text(text)
            forget(folder)
        else:
            (folder / f"typed_{i}.py").write_text(text)  # the compiler reads a function's source
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, str(folder / f"typed_{i}.py"), "exec"), space)
            printed = out.getvalue()


def test_the_table_holds_every_law_as_the_code_has_it() -> None:
    page = laws_table.PAGE.read_text()
    assert page == laws_table.with_tables(page), "docs/laws.md is stale: python -m tests.support.laws_table"
