"""A law, an excuse, a probe, and what the report says of them."""

from __future__ import annotations

import pytest

import ttransfer as tt
from ttransfer.testing import Broken, Law, LawBroken, Trial, judge, law
from ttransfer.testing._law import explained


@law()
def small(subject: int) -> None:
    """It is below ten.

    Broken by: counting too far.
    """
    if subject >= 10:
        raise Broken(f"it is {subject}")


@law(lambda subject: None)
def even(subject: int) -> None:
    """It is even."""
    if subject % 2:
        raise Broken("it is odd")


@law(lambda subject: subject > 0)
def crashes(subject: int) -> None:
    """It does not crash."""
    raise ZeroDivisionError(f"{subject} / 0\nand more")


LAWS: tuple[Law, ...] = (small, even, crashes)


def statuses(subject: int, **expected: str) -> dict[str, str]:
    report = judge(Trial("n", subject, LAWS, "a number", expected))
    return {outcome.law.name: outcome.status for outcome in report.outcomes}


def test_what_is_claimed_is_obeyed_or_broken_and_what_is_not_is_looked_at() -> None:
    assert statuses(-2) == {"small": "obeyed", "even": "seems"}
    assert statuses(11, crashes="numbers do") == {"small": "broken", "even": "differs", "crashes": "excused"}


def test_an_excuse_that_is_not_needed_is_a_failure() -> None:
    assert statuses(-2, small="it grows")["small"] == "not broken"
    report = judge(Trial("n", -2, LAWS, "", {"small": "it grows"}))
    assert "said to fail (it grows) and it holds" in str(report)


def test_a_failure_tells_the_law_the_find_and_the_cause() -> None:
    report = judge(Trial("n", 12, (small,), "a number"))
    assert str(report).splitlines() == [
        "n obeys 0 laws and fails 1. Taken as: a number",
        "",
        "small: It is below ten.",
        "  it is 12",
        "  likely cause: counting too far.",
    ]
    assert LawBroken(report).report is report


def test_any_error_of_a_part_is_a_broken_law_with_its_place() -> None:
    (outcome,) = judge(Trial("n", 1, (crashes,))).failed
    assert outcome.found.startswith("it raised ZeroDivisionError: 1 / 0 (test_law.py:")
    assert "likely cause" not in explained(outcome)


def test_unknown_names_are_refused_with_what_is_near() -> None:
    with pytest.raises(tt.TransferError, match="n: there is no law 'smal'; did you mean 'small'"):
        judge(Trial("n", 1, LAWS), only=["smal"])
    with pytest.raises(tt.TransferError, match="there is no law 'evn'"):
        judge(Trial("n", 1, LAWS, expected={"evn": "?"}))
