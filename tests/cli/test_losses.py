"""`ttransfer losses`."""

from __future__ import annotations

import pytest

import ttransfer as tt
from tests.support.losses_table import PAGE, with_table
from ttransfer._claims import claims_of
from ttransfer.cli import main
from ttransfer.cli._losses import entries

Out = pytest.CaptureFixture[str]


def test_all_are_listed(capsys: Out) -> None:
    assert main(["losses"]) == 0
    text = capsys.readouterr().out
    for place, module in (("losses", tt.losses), ("terms", tt.terms)):
        own = [name for name in module.__all__ if place == "terms" or claims_of(getattr(module, name)).own]
        assert [name for name in own if f"{place}.{name}" not in text] == []


@pytest.mark.parametrize("name", ["kd", "losses.kd", "tt.losses.kd", "KD"])
def test_one_is_told(name: str, capsys: Out) -> None:
    assert main(["losses", name]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tt.losses.kd(student: ")
    for word in (
        "formula",
        "mathrm{KL}",
        "a mean",
        "shift-invariant",
        "modelopt",
        "Distilling the Knowledge",
        "Args: student: logits",
        ">>>",
    ):
        assert word in " ".join(text.split())


def test_papers_for_bibtex(capsys: Out) -> None:
    assert main(["losses", "kd", "--bibtex"]) == 0
    assert capsys.readouterr().out.startswith("@misc{hinton2015distilling,")
    assert main(["losses", "--bibtex"]) == 0
    assert capsys.readouterr().out.count("@misc{hinton2015distilling,") == 1


def test_a_name_that_is_none(capsys: Out) -> None:
    assert main(["losses", "entrpy"]) == 2
    assert capsys.readouterr().err.strip() == "losses: there is no 'entrpy'; did you mean 'entropy'?"


def test_each_says_where_it_is_from_and_what_it_is_checked_against() -> None:
    assert [entry.name for entry in entries() if entry.name.startswith("losses.") and not entry.checked] == []
    assert [entry.name for entry in entries() if entry.name.startswith("losses.") and not entry.papers] == []


def test_the_page_holds_the_table() -> None:
    assert PAGE.read_text() == with_table(PAGE.read_text()), "run python -m tests.support.losses_table"
