"""Importing what is named: modules, files, files of packages; and saying what is wrong."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from ttransfer._errors import TransferError
from ttransfer.cli._load import load

LOSSES = """
import functools
import torch
from math import sqrt

def kd(student, teacher):
    return student

kd4 = functools.partial(kd, 4)

class Margin:
    default = 3
"""


@pytest.fixture
def losses(folder: Path) -> Path:
    (folder / "my_losses.py").write_text(LOSSES)
    return folder / "my_losses.py"


def test_a_module_and_a_file_are_one(losses: Path) -> None:
    kd = load("my_losses:kd")
    assert kd(3, 4) == 3
    assert load("my_losses.py:kd") is kd
    assert load(f"{losses}:kd") is kd
    assert load("my_losses:kd4").func is kd


def test_a_name_may_be_dotted(losses: Path) -> None:
    assert load("my_losses:Margin.default") == 3


def test_a_file_of_a_package_keeps_its_relative_imports(folder: Path) -> None:
    package = folder / "src" / "outer_pack" / "inner"
    package.mkdir(parents=True)
    for place in (package.parent, package):
        (place / "__init__.py").write_text("")
    (package.parent / "base.py").write_text("def half(x): return x / 2\n")
    (package / "use.py").write_text("from ..base import half\n")
    half = load("src/outer_pack/inner/use.py:half")
    assert half(3) == 1.5
    assert half.__module__ == "outer_pack.base"


def test_a_file_beside_the_file_is_found(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "near_by.py").write_text("three = 3\n")
    (folder / "deep" / "user_of_it.py").write_text("from near_by import three\n")
    assert load("deep/user_of_it.py:three") == 3


@pytest.mark.parametrize("name", ["json.py", "not-a-name.py"])
def test_a_file_whose_name_is_taken_or_no_name_is_loaded_by_itself(folder: Path, name: str) -> None:
    import json

    (folder / name).write_text("class Box:\n    def me(self): return 1\nbox = Box()\n")
    assert load(f"{name}:box").me() == 1
    assert load(f"{name}:Box") is type(load(f"{name}:box"))  # once, not twice
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("my_losses:kd5", "my_losses has no 'kd5'; did you mean 'kd' or 'kd4'?"),
        ("my_losses.py:nothing_like_it", "my_losses.py has no 'nothing_like_it'; there are: Margin, kd, kd4"),
        ("my_losses:Margin.defalt", "my_losses has no 'Margin.defalt'; did you mean 'default'?"),
        ("my_loses:kd", "there is no module 'my_loses'; did you mean 'my_losses'?"),
        ("my_loses.py:kd", "there is no file my_loses.py; did you mean 'my_losses.py'?"),
        ("my_losses.kd", "names no function: want package.module:name or file.py:name; did you mean 'my_losses:kd'?"),
        ("my_losses.py", "names no function: want package.module:name or file.py:name; there are: Margin, kd, kd4"),
        ("my_losses:", "my_losses has no ''; there are: Margin, kd, kd4"),
        ("kd", "'kd' names no function: want package.module:name or file.py:name"),
        (":kd", "':kd' names no function"),
        ("ttransfer.loses:kd", "there is no module 'ttransfer.loses'; did you mean 'ttransfer.losses' or"),
        ("./notes.txt:kd", "notes.txt is no Python file"),
    ],
)
def test_a_wrong_name_is_told_with_what_is_near(losses: Path, place: str, message: str) -> None:
    (losses.parent / "notes.txt").write_text("")
    with pytest.raises(TransferError, match=re.escape(message)):
        load(place)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all' (FILE:1)"),
        ("x = 1\ny = x / 0", "ZeroDivisionError: division by zero (FILE:2)"),
        ("raise SystemExit('usage: ...')", "SystemExit: usage: ... (FILE:1)"),
        ("def f(:", "SyntaxError: invalid syntax (broken_one.py, line 1)"),
    ],
)
@pytest.mark.parametrize("place", ["broken_one.py:f", "broken_one:f", "sub-folder/broken_one.py:f"])
def test_an_import_that_raises_is_told_with_the_line(folder: Path, code: str, message: str, place: str) -> None:
    file = folder / f"{place.split(':')[0].removesuffix('.py')}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(code)
    with pytest.raises(TransferError) as caught:
        load(place)
    wanted = message.replace("FILE", str(file.relative_to(folder)))
    assert str(caught.value) == f"importing {place.split(':')[0]} raised {wanted}"


def test_a_file_that_failed_can_be_mended(folder: Path) -> None:
    (folder / "json.py").write_text("x = 1 / 0")
    with pytest.raises(TransferError, match="ZeroDivisionError"):
        load("json.py:x")
    (folder / "json.py").write_text("x = 1")
    assert load("json.py:x") == 1
