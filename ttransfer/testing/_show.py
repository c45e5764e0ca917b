"""A report for people: at most as wide as the terminal, coloured where there is colour, plain text in a pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from ttransfer.testing._law import Law, Outcome, Report
from ttransfer.testing._tags import Tags

__all__ = ["claimable", "print_laws", "print_report"]

LABEL = 10  # columns
JOINED = "\0"  # a blank at which no line ends
Line = tuple[str, str]  # text, style


def claimable(report: Report) -> dict[str, bool]:
    """Return the tags that would turn what a loss seems to obey into claims.

    Args:
        report: from `judge`.

    Example:
        >>> from ttransfer.testing._law import judge
        >>> from ttransfer.testing._losses import loss_trial
        >>> trial = loss_trial(lambda student, teacher: (student - teacher.detach()).square().mean())
        >>> claimable(judge(trial, only=["shift-invariant", "zero-at-equality"]))
        {'zero_at_equality': True}
    """
    seen = [name.replace("-", "_") for name in report.seems]
    found = {name: True for name in seen if name in Tags._fields}
    # The one law whose tag denies: a loss that splits is not coupled.
    return {**found, "coupled": False} if "splits_over_rows" in seen else found


def print_report(report: Report, console: Console | None = None) -> None:
    """Print a report: how the arguments were taken, what is obeyed, every failure in full, what could be claimed.

    Args:
        report: from `judge`.
        console: where to; standard output if None.

    Example:
        >>> import sys, ttransfer as tt
        >>> from ttransfer.testing._law import judge
        >>> from ttransfer.testing._losses import loss_trial
        >>> report = judge(loss_trial(tt.losses.kd), only=["stationary", "repeat-invariant"])
        >>> print_report(report, Console(file=sys.stdout, width=80))
        kd
        taken as  student: logits (n, c), teacher: logits (n, c)
        obeyed    stationary
        seems     repeat-invariant: not claimed, and found to hold
                  claim it with --tag repeat_invariant
        <BLANKLINE>
        kd: 1 law obeyed
    """
    console = console or Console(highlight=False)
    width = max(40, min(console.width, 120))
    lines = [(report.name, "bold"), *_entry("taken as", report.taken, "", width)]
    by_status = {
        status: [o for o in report.outcomes if o.status == status] for status in ("obeyed", "excused", "differs")
    }
    if by_status["obeyed"]:
        lines += _entry("obeyed", ", ".join(o.law.name for o in by_status["obeyed"]), "green", width)
    lines += _failures(report, width)
    more: list[Line] = []
    for outcome in by_status["excused"]:
        more += _entry("excused", f"{outcome.law.name}: {outcome.reason}", "yellow", width)
    if report.seems:
        more += _entry("seems", f"{', '.join(report.seems)}: not claimed, and found to hold", "cyan", width)
        tags = " ".join(f"--tag{JOINED}{name}{'' if value else '=false'}" for name, value in claimable(report).items())
        if tags:
            more += _entry("", f"claim {'it' if len(report.seems) == 1 else 'them'} with {tags}", "cyan", width)
    if by_status["differs"]:
        names = ", ".join(o.law.name for o in by_status["differs"])
        more += _entry("differs", f"{names}: not claimed, and not so", "", width)
    if report.failed and more:
        lines.append(("", ""))
    _print([*lines, *more, ("", ""), *_verdict(report, width)], console)


def print_laws(laws: list[tuple[Law, bool | None]], console: Console | None = None) -> None:
    """Print laws, one to a paragraph: its name, what it says, and whether it is claimed.

    Args:
        laws: each with its claim: True, None if it is only looked at, False if it is not asked.
        console: where to; standard output if None.

    Example:
        >>> import sys
        >>> from ttransfer.testing.laws._gradient import gradcheck
        >>> print_laws([(gradcheck, True)], Console(file=sys.stdout, width=80))
        claimed    gradcheck: The gradient is the derivative of the value, in float64.
    """
    console = console or Console(highlight=False)
    width = max(40, min(console.width, 120))
    words = {True: ("claimed", "green"), None: ("looked at", "cyan"), False: ("not asked", "dim")}
    lines: list[Line] = []
    for law, claim in laws:
        label, style = words[claim]
        lines += _entry(label, f"{law.name}: {law.says}", style, width, LABEL + 1)
    _print(lines, console)


def _entry(label: str, text: str, style: str, width: int, indent: int = LABEL) -> Iterator[Line]:
    first, *rest = _wrapped(text, width - indent) or [""]
    yield f"{label:<{indent}}{first}", style
    for line in rest:
        yield " " * indent + line, style


def _wrapped(text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace(JOINED, " ") for line in lines]


def _failures(report: Report, width: int) -> Iterator[Line]:
    told: dict[str, int] = {}
    for number, outcome in enumerate(report.failed, start=1):
        # One error may break many laws: what was told in full once is not told again.
        first_line = outcome.found.split("\n")[0]
        what = first_line if first_line.startswith("it raised ") else outcome.found or str(number)
        yield "", ""
        yield from _failure(outcome, f"{number}. " if len(report.failed) > 1 else "", told.get(what), width)
        told.setdefault(what, number)


def _failure(outcome: Outcome, number: str, same: int | None, width: int) -> Iterator[Line]:
    law, word, found = outcome.law, "BROKEN", outcome.found
    if outcome.status == "not broken":
        word, found = "NOT BROKEN", f"it was said to fail ({outcome.reason}), and it holds: take the excuse back"
    for line in _wrapped(f"{word}  {number}{law.name}: {law.says}", width - 2):
        yield line, "bold red"
    if same is not None:
        yield f"    the same as in {same}", ""
        return
    for line in found.splitlines():
        hang = "  " if " = " in line else ""
        for i, piece in enumerate(_wrapped(line, width - 4 - len(hang)) or [""]):
            yield f"    {hang if i else ''}{piece}", ""
    if outcome.status == "broken" and law.cause:
        for line in _wrapped(f"likely cause: {law.cause}", width - 2):
            yield f"  {line}", "yellow"


def _verdict(report: Report, width: int) -> Iterator[Line]:
    held, excused = (sum(o.status == status for o in report.outcomes) for status in ("obeyed", "excused"))
    text = f"{report.name}: {held} law{'' if held == 1 else 's'} obeyed" + f", {excused} excused" * bool(excused)
    if report.failed:
        text += f", {len(report.failed)} failed: {', '.join(o.law.name for o in report.failed)}"
    for line in _wrapped(text, width):
        yield line, "bold red" if report.failed else "bold green"


def _print(lines: list[Line], console: Console) -> None:
    for text, style in lines:
        # Wrapped already; a word that is longer than the line is the terminal's to break.
        console.print(Text(text, style=style), soft_wrap=True)
