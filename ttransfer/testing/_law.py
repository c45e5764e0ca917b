"""A law, what breaks it, and how a part is judged by many."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ttransfer._errors import TransferError, nearest

__all__ = ["Broken", "Law", "LawBroken", "Outcome", "Report", "Trial", "demand", "judge", "law"]


class Broken(AssertionError):
    """What a law raises: what was found, with the smallest input that shows it.

    Example:
        >>> raise Broken("teacher gets a gradient")
        Traceback (most recent call last):
        ttransfer.testing._law.Broken: teacher gets a gradient
    """


class LawBroken(AssertionError):
    """A part broke laws that it claims, or did not break those it was said to.

    Attributes:
        report: everything that was found.

    Example:
        >>> LawBroken(Report("half", "student: logits (n, c)", ())).report.name
        'half'
    """

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


class Law(NamedTuple):
    """One thing that a part must obey.

    Attributes:
        name: as it is selected and excused by, for example "shift-invariant".
        check: subject -> None; raises `Broken`. Its docstring says the law, then what breaks it.
        claim: subject -> True if the law must hold, None if it is only looked at, False if it is not asked.

    Example:
        >>> def halves(subject):
        ...     '''Half of it is a whole number.
        ...
        ...     Broken by: an odd number.
        ...     '''
        >>> one = Law("halves", halves, lambda subject: True)
        >>> one.says, one.cause
        ('Half of it is a whole number.', 'an odd number.')
    """

    name: str
    check: Callable[[Any], None]
    claim: Callable[[Any], bool | None]

    @property
    def says(self) -> str:
        """The law in one line."""
        return (self.check.__doc__ or "").strip().split("\n")[0]

    @property
    def cause(self) -> str:
        """What usually breaks it."""
        text = " ".join((self.check.__doc__ or "").split())
        return text.split("Broken by: ")[1] if "Broken by: " in text else ""


def law(claim: Callable[[Any], bool | None] | bool = True) -> Callable[[Callable[[Any], None]], Law]:
    """Make a law of a function; its name is the function's, with dashes.

    Args:
        claim: subject -> True if the law must hold, None if it is only looked at, False if it is not asked;
            or one of these for all subjects.

    Example:
        >>> @law()
        ... def is_even(subject):
        ...     '''It is even.'''
        ...     if subject % 2:
        ...         raise Broken(f"{subject} is odd")
        >>> judge(Trial("three", 3, (is_even,))).failed[0].found
        '3 is odd'
    """

    def named(check: Callable[[Any], None]) -> Law:
        if callable(claim):
            return Law(check.__name__.replace("_", "-"), check, claim)
        return Law(check.__name__.replace("_", "-"), check, lambda subject: bool(claim))

    return named


class Outcome(NamedTuple):
    """What came of one law.

    Attributes:
        law: the law.
        status: "obeyed", "broken", "excused" (broken, and said to be), "not broken" (said to be, and is not),
            "seems" (not claimed, and found to hold) or "differs" (not claimed, and found not to).
        found: what was found where it does not hold.
        reason: why it was excused.

    Example:
        >>> Outcome(Law("even", print, bool), "broken", "3 is odd").failed
        True
    """

    law: Law
    status: str
    found: str = ""
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether the part fails for it."""
        return self.status in ("broken", "not broken")


class Report(NamedTuple):
    """What came of all laws.

    Attributes:
        name: of the part.
        taken: how its arguments were understood, in words.
        outcomes: one for each law asked.

    Example:
        >>> import ttransfer as tt
        >>> report = judge(tt.testing.loss_trial(tt.losses.kd), only=["scalar", "symmetric", "repeat-invariant"])
        >>> [outcome.status for outcome in report.outcomes]
        ['obeyed', 'differs', 'seems']
    """

    name: str
    taken: str
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The outcomes for which the part fails."""
        return tuple(o for o in self.outcomes if o.failed)

    @property
    def seems(self) -> tuple[str, ...]:
        """Laws that nobody claimed and that held all the same."""
        return tuple(o.law.name for o in self.outcomes if o.status == "seems")

    def __str__(self) -> str:
        held = sum(o.status == "obeyed" for o in self.outcomes)
        lines = [f"{self.name} obeys {held} laws and fails {len(self.failed)}. Taken as: {self.taken}"]
        for outcome in self.failed:
            lines += ["", explained(outcome)]
        if self.seems:
            lines += ["", f"Not claimed, and found to hold: {', '.join(self.seems)}"]
        return "\n".join(lines)


def explained(outcome: Outcome) -> str:
    """Tell a failure in words: the law, what was found, the likely cause."""
    if outcome.status == "not broken":
        return (
            f"{outcome.law.name}: it was said to fail ({outcome.reason}) and it holds\n"
            f"  the law: {outcome.law.says}\n  Drop it from expected_failed_checks, or see what was lost"
        )
    lines = [f"{outcome.law.name}: {outcome.law.says}", *(f"  {line}" for line in outcome.found.splitlines())]
    return "\n".join([*lines, f"  likely cause: {outcome.law.cause}"] if outcome.law.cause else lines)


class Trial(NamedTuple):
    """A part with the laws to judge it by.

    Attributes:
        name: of the part.
        subject: what the laws get.
        laws: the laws.
        taken: how the part's arguments were understood, in words.
        expected: name of a law -> why the part breaks it.

    Example:
        >>> import ttransfer as tt
        >>> trial = tt.testing.loss_trial(tt.align.coral)
        >>> trial.name, trial.taken
        ('coral', 'source: features (n, d), target: features (m, d); at least 2 rows')
    """

    name: str
    subject: Any
    laws: tuple[Law, ...]
    taken: str = ""
    expected: Mapping[str, str] = {}

    @property
    def asked(self) -> tuple[Law, ...]:
        """The laws that are claimed or looked at."""
        return tuple(one for one in self.laws if one.claim(self.subject) is not False)


def judge(trial: Trial, only: Iterable[str] | None = None) -> Report:
    """Run the laws of a trial, or some of them.

    Args:
        trial: the part and its laws.
        only: names of the laws to run; all that are asked, unless given.

    Returns:
        A report; a broken law raises nothing here.

    Raises:
        TransferError: for a name that no law has.

    Example:
        >>> import ttransfer as tt
        >>> print(judge(tt.testing.loss_trial(tt.losses.kd), only=["detached"]))
        kd obeys 1 laws and fails 0. Taken as: student: logits (n, c), teacher: logits (n, c)
    """
    known = {one.name: one for one in trial.laws}
    for name in [*trial.expected, *(only or ())]:
        if name not in known:
            raise TransferError(f"{trial.name}: there is no law {name!r}{nearest(name, known)}")
    wanted = set(known if only is None else only)
    return Report(trial.name, trial.taken, tuple(_outcome(trial, one) for one in trial.asked if one.name in wanted))


def demand(trial: Trial, only: Iterable[str] | None = None) -> Report:
    """Judge, and raise `LawBroken` if the part fails."""
    report = judge(trial, only)
    if report.failed:
        raise LawBroken(report)
    return report


def _outcome(trial: Trial, one: Law) -> Outcome:
    found = ""
    try:
        with warnings.catch_warnings():  # a part may warn; that is between it and its user
            warnings.simplefilter("ignore")
            one.check(trial.subject)
    except Broken as broken:
        found = str(broken)
    except Exception as error:  # a part may fail in any way
        found = f"it raised {_last(error)}"
    claimed = one.claim(trial.subject)
    if one.name in trial.expected:
        return Outcome(one, "excused" if found else "not broken", found, trial.expected[one.name])
    if claimed is None:
        return Outcome(one, "differs" if found else "seems", found)
    return Outcome(one, "broken" if found else "obeyed", found)


def _last(error: BaseException) -> str:
    message = str(error).strip().split("\n")[0]
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({frame.filename.rsplit('/', 1)[-1]}:{frame.lineno})" for frame in where)
    return f"{type(error).__name__}: {message}{place}"
