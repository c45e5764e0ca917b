"""`ttransfer losses`."""

from __future__ import annotations

import inspect

import pytest

import ttransfer as tt
from tests.support.losses_table import PAGE, with_table
from ttransfer.cli import main
from ttransfer.cli._losses import HELPER, PAPERS, entries

Out = pytest.CaptureFixture[str]


def test_all_are_listed(capsys: Out) -> None:
    assert main(["losses"]) == 0
    text = capsys.readouterr().out
    for place, module in (("losses", tt.losses), ("align", tt.align), ("terms", tt.terms)):
        own = [name for name in module.__all__ if inspect.isfunction(getattr(module, name))]
        assert [name for name in own if f"{place}.{name}" not in text] == []


def test_what_is_no_loss_is_a_helper() -> None:
    found = {entry.name: entry.rows for entry in entries()}
    assert {found[f"align.{name}"] for name in ("shot_labels", "multilinear", "mixup", "class_weights")} == {HELPER}
    assert found["align.mmd"] == "couples rows"


@pytest.mark.parametrize("paper", PAPERS)
def test_the_names_of_papers_find_what_they_are_here(paper: str, capsys: Out) -> None:
    names = [entry.name for entry in entries()]
    assert [name for name in names if name.split(".")[1] == paper] == []
    assert main(["losses", paper.replace("_", "-").upper()]) == 0
    text = capsys.readouterr().out
    for meant in PAPERS[paper]:
        assert any(name.endswith(f".{meant}") and f"tt.{name}(" in text for name in names)


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
    losses = [entry for entry in entries() if entry.name.startswith("losses.") and entry.rows != HELPER]
    assert [entry.name for entry in losses if not entry.checked] == []
    assert [entry.name for entry in losses if not entry.papers] == []


def test_the_page_holds_the_table() -> None:
    assert PAGE.read_text() == with_table(PAGE.read_text()), "run python -m tests.support.losses_table"
