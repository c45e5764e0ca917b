"""Terms on trial."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

from ttransfer._errors import TransferError, shown
from ttransfer.core._reads import flat
from ttransfer.core._term import name_of
from ttransfer.core._types import Term
from ttransfer.testing._law import Law, Report, Trial, demand
from ttransfer.testing._losses import loss_trial
from ttransfer.testing._tags import Tags
from ttransfer.testing.laws import _term
from ttransfer.testing.laws._step_tools import subject_of
from ttransfer.testing.laws._term_tools import TermSubject, as_loss, first_state, flattened, in_a_step, moved

__all__ = ["check_term", "term_trial"]

Limits = Mapping[str, Callable[[Any], tuple[Any, Any]]]


def term_trial(
    term: Term,
    readings: Any,
    *,
    tags: Tags | None = None,
    reference: Callable[..., Any] | None = None,
    limits: Limits | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str | None = None,
    examples: int = 15,
) -> Trial:
    """Put a term on trial, without judging it yet: for `judge` and `parametrize_with_checks`.

    The term is judged three times: as a loss of its readings, by the laws of losses, with its parameters as they start,
    moved a little so that none is 0, and its schedules some steps on; by laws on its parameters, its state and its
    numbers; and in a step made of it, by laws of steps, whose names begin with "step-".

    Args:
        term: the term. Its paths are not looked at, and no network is needed.
        readings: an example of what its paths give, one thing for each: tensors with one row for each example, as
            they are before its pipes; a list of them where it reads a list, a dict of tensors for ``net:params``, a
            function for ``net:fn``. Their number of rows and their values will vary, nothing else.
        tags: claims of the loss, as for `loss_trial`.
        reference: a slow formula for the value, called with the readings in float64. It does not get the term's
            parameters, so that it is for terms without any.
        limits: name -> (loss) -> (value, what it should be), where the loss is called with readings.
        expected_failed_checks: law -> why it does not hold. A law named here that holds is a failure.
        name: of the term, in ids and reports; its loss's unless given.
        examples: how many inputs each law draws, about.

    Raises:
        TransferError: if it is no Term, or its loss takes no such readings.

    Example:
        >>> import torch, ttransfer as tt
        >>> term = tt.term(tt.losses.kd, "student(a)", "teacher(a)", temperature=2.0)
        >>> trial = term_trial(term, (torch.randn(4, 3), torch.randn(4, 3)))
        >>> trial.taken
        'kd(student: logits (n, 3), teacher: logits (n, 3)) with numbers weight, temperature'
        >>> len(tt.testing.judge(trial, only=["stationary", "every-number-counts", "step-no-weight-no-term"]).failed)
        0
    """
    if not isinstance(cast(Any, term), Term):
        raise TransferError(f"term_trial: expected a Term, got {shown(term)}; make one with tt.term(...)")
    title = name or name_of(term.fn)
    given = flattened(title, term, readings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing learns from a term, some law will say
        step, batch = in_a_step(title, term, given)
        inner = subject_of(title, step, batch, 0, 3)
    state = moved(first_state(step, batch, 0))
    loss = loss_trial(
        as_loss(title, term, state, given),
        tuple(given),
        tags=tags,
        reference=reference,
        limits=limits,
        name=title,
        examples=examples,
    )
    stopped = tuple(
        argument.name
        for argument, read in zip(loss.subject.arguments, flat(term.reads), strict=True)
        if any(pipe.name == "detach" for pipe in read.pipes)
    )
    known = loss.subject.tags
    judged = loss.subject._replace(tags=known._replace(detaches=(*(known.detaches or ()), *stopped)))
    subject = TermSubject(title, term, judged, inner, state, tuple(given))
    laws = (*map(_of_losses, loss.laws), *_term.LAWS)
    own = [f"numbers {', '.join(term.hyper)}"]
    own += [f"parameters {', '.join(subject.own)}"] * bool(subject.own)
    taken = f"{name_of(term.fn)}({loss.taken}) with {'; '.join(own)}"
    return Trial(title, subject, laws, taken, dict(expected_failed_checks or {}))


def _of_losses(one: Law) -> Law:
    """A law of losses, for the term as a loss of its readings."""

    def check(subject: TermSubject) -> None:
        one.check(subject.loss)

    check.__doc__ = one.check.__doc__
    return Law(one.name, check, lambda subject: one.claim(subject.loss))


def check_term(
    term: Term,
    readings: Any,
    *,
    tags: Tags | None = None,
    reference: Callable[..., Any] | None = None,
    limits: Limits | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str | None = None,
    examples: int = 15,
) -> Report:
    """Judge a term by the laws of losses, by those of its own parameters, state and numbers, and in a step.

    Args:
        term: as for `term_trial`, and so are the others.
        readings: an example of what its paths give.
        tags: claims of the loss.
        reference: a slow formula for the value.
        limits: name -> (loss) -> (value, what it should be).
        expected_failed_checks: law -> why it does not hold.
        name: of the term.
        examples: how many inputs each law draws, about.

    Returns:
        The report, which also says which laws the term seems to obey though nobody claimed them.

    Raises:
        LawBroken: for a law that is broken: which, the smallest input found, the numbers and the likely cause.
        TransferError: if it cannot be put on trial.

    Example:
        >>> import torch, ttransfer as tt
        >>> def pull(z, *, params):
        ...     return (z - params["centre"].detach()).square().mean()
        >>> term = tt.term(pull, "net(a)", params=lambda generator, z: {"centre": torch.ones(z.shape[1])})
        >>> check_term(term, (torch.randn(4, 2),))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ttransfer.testing._law.LawBroken: pull obeys ... laws and fails 2. ...
        own-parameters-learn: Every parameter of the term, those of its pipes among them, gets a gradient somewhere...
    """
    trial = term_trial(
        term,
        readings,
        tags=tags,
        reference=reference,
        limits=limits,
        expected_failed_checks=expected_failed_checks,
        name=name,
        examples=examples,
    )
    return demand(trial)
