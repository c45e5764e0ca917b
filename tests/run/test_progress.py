from __future__ import annotations

import io
import sys

import pytest

from ttransfer.run._progress import showing, text_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(steps: int, begin: int, progress: bool | None) -> None:
    with showing(steps, begin, progress) as show:
        for done in range(begin + 1, steps + 1):
            show(done, {"loss": done / 4, "kd.weight": 1.0} if done % 10 == 0 else {})


def test_text_leaves_hypers_and_members_to_the_log() -> None:
    row = {"loss": 1.23456, "kd": 2e-5, "kd.weight": 1.0, "kd/0": 2e-5, "accuracy": 0.5}
    assert text_of(row) == "loss 1.235  kd 2e-05  accuracy 0.5"


@pytest.mark.parametrize("progress", [None, False])
def test_nothing_is_shown_where_nobody_looks(progress: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    run(100, 0, progress)
    assert capsys.readouterr() == ("", "")


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(1000, 0, True)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 20
    assert (lines[0], lines[-1]) == ("step 50/1000  loss 12.5", "step 1000/1000  loss 250")


def test_lines_go_on_from_where_a_run_begins(capsys: pytest.CaptureFixture[str]) -> None:
    run(1000, 910, True)
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == ["step 950/1000", "step 1000/1000"]


def test_what_was_evaluated_earlier_stays_on_show(capsys: pytest.CaptureFixture[str]) -> None:
    with showing(2, 0, True) as show:
        show(1, {"accuracy": 0.5})
        show(2, {"loss": 1.0})
    assert capsys.readouterr().err.splitlines()[-1] == "step 2/2  accuracy 0.5  loss 1"


@pytest.mark.parametrize("progress", [None, True])
def test_a_bar_in_a_terminal(progress: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run(100, 50, progress)
    bar = terminal.getvalue()
    assert "50%" in bar
    assert "100/100" in bar
    assert "loss 25" in bar


def test_a_terminal_may_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run(100, 0, False)
    assert terminal.getvalue() == ""
