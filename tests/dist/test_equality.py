"""The table of equality over real processes, a pick of it: `make test-dist` runs it whole."""

from __future__ import annotations

import pathlib

import pytest

from tests.dist.cases import TERMS
from tests.dist.equality import WHOLE
from tests.dist.table import run
from ttransfer.dist._norms import compiles

PICK = ("cross-entropy, some ignored", "mmd", "dann")


@pytest.mark.parametrize(("backend", "size"), [("gloo", 2), ("gloo", 3), ("ccl", 2)])
def test_processes_make_the_step_of_one(backend: str, size: int) -> None:
    names = (*TERMS, *WHOLE) if (backend, size) == ("gloo", 2) else (*PICK, *WHOLE)
    found = run(backend, size, ["eager"], names)
    assert set(found) == {(name, "eager") for name in names}
    assert max(found.values()) < 1e-9, found


@pytest.mark.parametrize("backend", ["gloo", "ccl"])
def test_compiled_processes_make_the_step_of_one(backend: str) -> None:
    # Not every torch can trace synced normalisation.
    found = run(backend, 2, ["compiled"], (WHOLE[0] if compiles(members=False) else "mmd", WHOLE[1]))
    assert len(found) == 2
    assert max(found.values()) < 1e-9, found


def test_the_table_in_the_docs_names_every_case() -> None:
    page = pathlib.Path(__file__).parents[2] / "docs" / "sharded_equality.md"
    text = page.read_text()
    assert [name for name in (*TERMS, *WHOLE) if f"| {name} |" not in text] == []
