"""The report as text: everything that is in it, in lines that fit."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor

from ttransfer.testing import Law, Outcome, Report, Tags, judge, loss_trial
from ttransfer.testing._show import claimable, print_laws, print_report


def named(name: str, cause: str = "") -> Law:
    def check(subject: object) -> None: ...

    check.__doc__ = f"The law of {name}.\n\n    Broken by: {cause}\n    " if cause else f"The law of {name}."
    return Law(name, check, lambda subject: True)


LONG = "student = [" + ", ".join(["[-0.25, 1000.0]"] * 9) + "]"
REPORT = Report(
    "kd",
    "student: logits (n, c), teacher: logits (n, c)",
    (
        Outcome(named("scalar"), "obeyed"),
        Outcome(named("gradcheck", "a slip."), "broken", f"it is 1 and 2\n{LONG}\nteacher = [[0.0]]"),
        Outcome(named("detached"), "not broken", "", "both train"),
        Outcome(named("vmap"), "excused", "it raised", "uses NumPy"),
        Outcome(named("symmetric"), "seems"),
        Outcome(named("shift-invariant"), "differs", "it is 1 and 2"),
        Outcome(named("finite"), "obeyed"),
    ),
)


def printed(report: Report, width: int = 80, **options: object) -> str:
    file = io.StringIO()
    print_report(report, Console(file=file, width=width, highlight=False, **options))  # type: ignore[arg-type]
    return file.getvalue()


def test_a_report_says_everything_in_its_order() -> None:
    assert (
        printed(REPORT)
        == """kd
taken as  student: logits (n, c), teacher: logits (n, c)
obeyed    scalar, finite

BROKEN  1. gradcheck: The law of gradcheck.
    it is 1 and 2
    student = [[-0.25, 1000.0], [-0.25, 1000.0], [-0.25, 1000.0], [-0.25,
      1000.0], [-0.25, 1000.0], [-0.25, 1000.0], [-0.25, 1000.0], [-0.25,
      1000.0], [-0.25, 1000.0]]
    teacher = [[0.0]]
  likely cause: a slip.

NOT BROKEN  2. detached: The law of detached.
    it was said to fail (both train), and it holds: take the excuse back

excused   vmap: uses NumPy
seems     symmetric: not claimed, and found to hold
          claim it with --tag symmetric
differs   shift-invariant: not claimed, and not so

kd: 2 laws obeyed, 1 excused, 2 failed: gradcheck, detached
"""
    )


def test_what_was_told_in_full_once_is_not_told_again() -> None:
    raised = "it raised ValueError: too few rows"
    outcomes = (
        Outcome(named("scalar", "a slip."), "broken", f"{raised}\nx = [1.0]"),
        Outcome(named("dtype", "a cast."), "broken", f"{raised}\nx = [2.0]"),
        Outcome(named("is-finite", "a log."), "broken", "the value is nan\nx = [1.0]"),
        Outcome(named("vmap", "a branch."), "broken", "the value is nan\nx = [2.0]"),
        Outcome(named("symmetric", "a sign."), "broken", "the value is nan\nx = [1.0]"),
        Outcome(named("bfloat16"), "not broken", "", "rounding"),
        Outcome(named("float32"), "not broken", "", "rounding"),
    )
    text = printed(REPORT._replace(outcomes=outcomes))
    assert text.count("too few rows") == 1
    assert "2. dtype: The law of dtype.\n    the same as in 1\n\n" in text
    assert "4. vmap: The law of vmap.\n    the value is nan\n    x = [2.0]\n  likely cause: a branch." in text
    assert "5. symmetric: The law of symmetric.\n    the same as in 3\n\n" in text
    assert text.count("take the excuse back") == 2


@pytest.mark.parametrize("width", [40, 60, 80, 119])
def test_lines_fit_and_no_option_is_torn_from_its_name(width: int) -> None:
    seen = ("symmetric", "non-negative", "zero-at-equality", "splits-over-rows", "row-symmetric")
    report = REPORT._replace(outcomes=(*REPORT.outcomes, *(Outcome(named(name), "seems") for name in seen[1:])))
    text = printed(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert not [line for line in text.splitlines() if line.endswith("--tag") or line != line.rstrip()]
    assert "--tag coupled=false" in text


def test_brackets_in_a_report_are_no_markup() -> None:
    outcome = Outcome(named("scalar"), "broken", "it raised [red]x[/red] [0]")
    assert "it raised [red]x[/red] [0]" in printed(REPORT._replace(outcomes=(outcome,)))


def test_colour_only_where_there_is_colour() -> None:
    assert "\x1b" not in printed(REPORT)
    assert "\x1b[1;31mBROKEN" in printed(REPORT, force_terminal=True, color_system="standard")


def losses() -> list[object]:
    def compared(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher.detach()).square().mean()

    def aligned(source: Tensor, target: Tensor) -> Tensor:
        return (source.mean(0) - target.mean(0)).square().sum()

    def supervised(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits, labels)

    def of_features(features: Tensor) -> Tensor:
        return features.square().mean()

    return [compared, aligned, supervised, of_features]


@pytest.mark.parametrize("fn", losses())
def test_every_law_that_is_only_looked_at_has_a_tag_that_claims_it(fn: object) -> None:
    trial = loss_trial(fn)  # type: ignore[arg-type]
    looked = [law for law in trial.asked if law.claim(trial.subject) is None]
    assert looked
    for law in looked:
        report = Report("x", "", (Outcome(law, "seems"),))
        tags = claimable(report)
        assert len(tags) == 1, law.name
        claimed = loss_trial(fn, tags=Tags(**tags))  # type: ignore[arg-type]
        assert law.claim(claimed.subject) is True, law.name


def test_what_is_not_found_is_not_to_be_claimed() -> None:
    assert claimable(REPORT) == {"symmetric": True}
    trial = loss_trial(lambda student, teacher: student.mean())
    assert claimable(judge(trial, only=["symmetric"])) == {}


def test_laws_are_listed_with_their_claims() -> None:
    file = io.StringIO()
    laws = [(named("scalar"), True), (named("symmetric"), None), (named("reference"), False)]
    print_laws(laws, Console(file=file, width=80))
    assert file.getvalue().splitlines() == [
        "claimed    scalar: The law of scalar.",
        "looked at  symmetric: The law of symmetric.",
        "not asked  reference: The law of reference.",
    ]
