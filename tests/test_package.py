"""The package as users get it: the wheel, the import and its cost, the lazy top level."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import shutil
import site
import subprocess
import sys
import textwrap
import venv
import zipfile

import pytest

import ttransfer

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("ttransfer", "ttransfer_ext")


def run(*command: str | os.PathLike[str], cwd: pathlib.Path | None = None) -> str:
    done = subprocess.run(list(map(os.fspath, command)), cwd=cwd, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Build from a copy, so that neither an old build/ gets in nor a new one stays; without the network."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "tests", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-index", "--no-deps")
    run(*pip, "--no-build-isolation", "--wheel-dir", built, source)
    (found,) = built.glob("*.whl")
    return found


def test_wheel_holds_both_packages_whole_and_nothing_else(wheel: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {pathlib.PurePosixPath(name) for name in archive.namelist()}
        (metadata,) = (archive.read(str(name)).decode() for name in names if name.name == "METADATA")
    held = {name for name in names if not name.parts[0].endswith(".dist-info")}
    assert held == {
        pathlib.PurePosixPath(path.relative_to(ROOT).as_posix())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".cpp", ".hpp") or path.name == "py.typed"
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(map(str, held))
    assert any(name.name == "LICENSE" for name in names)
    header = metadata.split("\n\n")[0].splitlines()
    assert {"Name: ttransfer", "License-Expression: Apache-2.0", "Requires-Python: >=3.11"} <= set(header)
    assert "Requires-Dist: torch>=2.8" in header


def test_wheel_imports_in_a_clean_venv(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (python,) = (tmp_path / "venv").glob("bin/python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    (own,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # torch and the like are borrowed. A path in a .pth file comes after the venv's own, and .pth files
    # there are not read, so the repository is not on the path even where it is installed as editable.
    (own / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = """
        import importlib, json, pkgutil, sys
        import ttransfer, ttransfer_ext
        modules = [ttransfer, ttransfer_ext]
        modules += [importlib.import_module("ttransfer." + m.name) for m in pkgutil.iter_modules(ttransfer.__path__)]
        for name in dir(ttransfer):
            getattr(ttransfer, name)
        print(json.dumps([[m.__name__, m.__file__] for m in modules]))
    """
    found = dict(json.loads(run(python, "-I", "-c", textwrap.dedent(code), cwd=elsewhere)))
    assert {f"ttransfer.{path.parent.name}" for path in (ROOT / "ttransfer").glob("*/__init__.py")} <= set(found)
    assert all(pathlib.Path(file).is_relative_to(own) for file in found.values()), found


ALL = "import ttransfer; [getattr(ttransfer, name) for name in dir(ttransfer)]"
# What a training script may touch: the laws bring Hypothesis along, a fifth of torch's own import.
TRAINING = ALL.removesuffix("]") + " if name != 'testing']"


def fresh_process(statement: str) -> tuple[float, set[str]]:
    """Return the processor time that a statement takes in a new process, and the modules it leaves."""
    code = f"import time; begin = time.process_time()\n{statement}\nspent = time.process_time() - begin\n"
    code += "import json, sys; print(json.dumps([spent, list(sys.modules)]))"
    spent, modules = json.loads(run(sys.executable, "-c", code, cwd=ROOT))
    return spent, set(modules)


def test_import_costs_little_more_than_torch() -> None:
    # Processor time, and the least of interleaved runs, because other work on the machine only ever adds to it.
    # The import alone defers nearly everything, so all names behind it, over 250 modules, are held to a bound too: it
    # is 1.23 on a quiet machine.
    statements = ("import torch", "import ttransfer", TRAINING)
    for statement in statements:
        fresh_process(statement)
    runs = [[fresh_process(statement)[0] for statement in statements] for _ in range(5)]
    torch, ours, names = (min(column) for column in zip(*runs, strict=True))
    assert ours < 1.2 * torch, runs
    assert names < 1.6 * torch, runs


def test_import_leaves_the_compiler_and_the_extras_alone() -> None:
    unwanted = {"torch._dynamo", "torch._inductor", "tensorboard", "torchvision", "timm", "torchopt", "ttransfer_ext"}
    _, modules = fresh_process(ALL)
    assert "ttransfer.core" in modules
    assert not modules & unwanted


def test_every_top_level_name_resolves() -> None:
    names = [name for name in dir(ttransfer) if not name.startswith("_")]
    assert names
    assert set(names) >= set(ttransfer.__all__)
    for name in names:
        assert getattr(ttransfer, name) is not None, name


def test_type_checkers_see_the_names_that_there_are() -> None:
    tree = ast.parse(pathlib.Path(str(ttransfer.__file__)).read_text())
    seen = {
        alias.asname or alias.name
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert seen == set(ttransfer.__all__)


def test_an_unknown_top_level_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        ttransfer.no_such_name  # noqa: B018
