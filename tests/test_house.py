"""The rules of the house that a machine can check. CONTRIBUTING.md states them."""

from __future__ import annotations

import doctest
import importlib
import inspect
import io
import pathlib
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

import ttransfer

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(path for package in ("ttransfer", "ttransfer_ext") for path in (ROOT / package).rglob("*.py"))
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES]
TOPICS = sorted(path.parent.name for path in (ROOT / "ttransfer").glob("*/__init__.py"))
FLAGS = doctest.NORMALIZE_WHITESPACE


def relative(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def files() -> list[pathlib.Path]:
    """Return what is, or is about to be, under version control."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for name in listed if (path := ROOT / name).is_file()]


def public() -> Iterator[tuple[str, Any]]:
    """Yield every public function and class once, under the shortest name that users see."""
    seen: set[int] = set()
    places = [("ttransfer", ttransfer), *((t, importlib.import_module(f"ttransfer.{t}")) for t in TOPICS)]
    places += [(n, m) for n in ttransfer.__all__ if inspect.ismodule(m := getattr(ttransfer, n)) and n not in TOPICS]
    for place, module in places:
        for name in module.__all__:
            symbol = getattr(module, name)
            if (inspect.isfunction(symbol) or inspect.isclass(symbol)) and id(symbol) not in seen:
                seen.add(id(symbol))
                yield f"{place}.{name}", symbol


def section(doc: str, title: str) -> str:
    """Return the indented body under a title of a docstring."""
    found = re.search(rf"^{title}:\n((?:[ \t]+.*\n|\n)*)", doc + "\n", re.MULTILINE)
    return found[1] if found else ""


def described(doc: str, title: str) -> set[str]:
    """Return the names that a section describes: `name:`, `*name:`, and `name, other:` for a few at once."""
    heads = re.findall(r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \(.*?\))?:", section(doc, title), re.MULTILINE)
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


PUBLIC = list(public())
named = pytest.mark.parametrize("symbol", [s for _, s in PUBLIC], ids=[n for n, _ in PUBLIC])


@named
def test_public_symbol_has_a_docstring_with_an_example(symbol: Any) -> None:
    doc = inspect.getdoc(symbol) or ""
    # A NamedTuple without a docstring gets its signature for one.
    assert not doc.startswith(f"{symbol.__name__}("), "no docstring"
    assert ">>>" in section(doc, "Example"), "no Example that runs"


@named
def test_public_symbol_describes_its_arguments(symbol: Any) -> None:
    doc = inspect.getdoc(symbol) or ""
    if fields := getattr(symbol, "_fields", None):
        assert set(fields) <= described(doc, "Attributes")
    elif inspect.isfunction(symbol):
        assert set(inspect.signature(symbol).parameters) <= described(doc, "Args")


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    out = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for case in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(case, out=out.write)
    assert runner.summarize(verbose=False).failed == 0, out.getvalue()


def test_sources_are_short() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {name: length for name, length in lengths.items() if length > 300}


def test_tests_mirror_the_sources() -> None:
    missing = [
        relative(path)
        for path in SOURCES
        if path.parent.parent.name == "ttransfer" and path.name != "__init__.py"
        if not (ROOT / "tests" / path.parent.name / f"test{path.name}").is_file()
    ]
    assert not missing, f"without a test file: {missing}"


def test_packages_say_what_is_public() -> None:
    for topic in TOPICS:
        module = importlib.import_module(f"ttransfer.{topic}")
        assert len(set(module.__all__)) == len(module.__all__) > 0, topic
        assert all(hasattr(module, name) for name in module.__all__), topic


# Spelled in pieces, so that this file does not hold what it looks for.
PATHS = re.compile("(?<![\\w.])/(?:" + "|".join(["home", "root", "Users", "work", "mnt", "opt"]) + r")/\w|\b[A-Z]:\\\w")
HOSTS = re.compile(
    "|".join(["pypi" + r"\.org", "python" + r"hosted\.org", "pytorch" + r"\.org/whl", "npm" + r"js\.(org|com)"])
)


@pytest.mark.parametrize("pattern", [PATHS, HOSTS], ids=["paths of a machine", "hosts of a registry"])
def test_no_file_names(pattern: re.Pattern[str]) -> None:
    found = []
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        lines = enumerate(text.splitlines(), start=1)
        found += [f"{relative(path)}:{i}: {hit[0]}" for i, line in lines if (hit := pattern.search(line))]
    assert not found
