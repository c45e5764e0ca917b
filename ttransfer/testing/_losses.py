"""Losses on trial."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn

from ttransfer._claims import claims_of
from ttransfer._errors import TransferError
from ttransfer.testing._arguments import by_example
from ttransfer.testing._infer import fewest_rows, inferred, only_rows
from ttransfer.testing._law import Report, Trial, demand
from ttransfer.testing._subject import Subject
from ttransfer.testing._tags import Tags
from ttransfer.testing.laws import _basic, _claims, _edges, _equality, _gradient, _modes, _reference, _symmetry

__all__ = ["check_loss", "loss_trial"]

Limits = Mapping[str, Callable[[Any], tuple[Any, Any]]]
GROUPS = (_basic, _gradient, _equality, _symmetry, _edges, _claims, _reference, _modes)


def loss_trial(
    fn: Callable[..., Any],
    example: Any = None,
    *,
    tags: Tags | None = None,
    reference: Callable[..., Any] | None = None,
    limits: Limits | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str | None = None,
    examples: int = 20,
) -> Trial:
    """Put a loss on trial, without judging it yet: for `judge` and `parametrize_with_checks`.

    Args:
        fn: the loss: tensors in, 0-d tensor out. A function, a `functools.partial`, or an `nn.Module`.
        example: a tuple of its arguments, or name -> argument: their number of rows and their values will
            vary, nothing else. Or a Hypothesis strategy for such tuples, from which alone is drawn. Without
            one, the arguments' names decide, and where these do not, trial.
        tags: claims beyond what the names say, and beyond or instead of what the loss declares of itself.
        reference: a slow formula for the same, called with the same arguments in float64.
        limits: name -> (loss) -> (value, what it should be).
        expected_failed_checks: law -> why it does not hold. A law named here that holds is a failure.
        name: of the loss, in ids and reports.
        examples: how many inputs each law draws, about.

    Raises:
        TransferError: if no arguments are found that the loss takes, or the example has none.

    Example:
        >>> import ttransfer as tt
        >>> trial = loss_trial(tt.losses.kd, tags=Tags(shift_invariant=True))
        >>> trial.taken
        'student: logits (n, c), teacher: logits (n, c)'
        >>> len(tt.testing.judge(trial, only=["stationary", "shift-invariant"]).failed)
        0
    """
    title = name or title_of(fn)
    claims = claims_of(fn)
    fn = _in_its_inputs_dtype(fn) if isinstance(fn, nn.Module) else fn
    said = {key: x for key, x in (tags or Tags())._asdict().items() if x != Tags._field_defaults[key]}
    tags = Tags(**{**claims.tags, **said})  # what the loss declares holds unless it is said otherwise here
    strategy = example if isinstance(example, SearchStrategy) else None
    same = False
    if strategy is not None:
        arguments = tuple(by_example(fn, _first(strategy)))
    elif example is not None:
        arguments = tuple(by_example(fn, example))
    else:
        arguments, same = inferred(title, fn, tags)
    teachers = tuple(a.name for a in arguments if a.role == "teacher")
    if tags.detaches != ():
        tags = tags._replace(detaches=tuple(dict.fromkeys((*teachers, *(tags.detaches or ())))))
    if tags.coupled is None and (claims.own or not claims.coupled):
        tags = tags._replace(coupled=claims.coupled)
    if tags.min_batch is None and strategy is None:
        tags = tags._replace(min_batch=fewest_rows(fn, arguments, same))
    rows = None if example is None or strategy is not None else only_rows(fn, arguments)
    subject = Subject(title, fn, arguments, tags, strategy, reference, limits or {}, examples, same, rows)
    _all_can_be_tried(subject, said)
    laws = tuple(one for group in GROUPS for one in group.LAWS) + _reference.limit_laws(limits or {})
    taken = ", ".join(map(str, arguments)) + (", m = n" if same else "")
    if rows:
        taken += f"; n = {rows} always"
    elif subject.fewest > 1:
        taken += f"; at least {subject.fewest} rows"
    return Trial(title, subject, laws, taken, dict(expected_failed_checks or {}))


def _in_its_inputs_dtype(module: nn.Module) -> Callable[..., Any]:
    """A module whose own tensors are cast to what it is called with, as `module.to(dtype)` would."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if not any(x.is_floating_point() for x in own.values()):
        return module

    @functools.wraps(module.forward)
    def call(*inputs: Any) -> Any:
        # No `next` with a default: torch 2.8 does not trace it.
        dtypes = [x.dtype for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
        dtype = dtypes[0] if dtypes else torch.float32
        cast = {name: x.detach().to(dtype) if x.is_floating_point() else x for name, x in own.items()}
        return torch.func.functional_call(module, cast, inputs)

    return call


def _all_can_be_tried(subject: Subject, said: Mapping[str, Any]) -> None:
    """Refuse a claim made for this trial that the arguments give no way to try.

    Raises:
        TransferError: for such a claim.
    """
    for one in (*_equality.LAWS, *_symmetry.LAWS):
        tag = one.name.replace("-", "_")
        if said.get(tag) is True and one.claim(subject) is False:
            raise TransferError(
                f"{subject.name}: {tag} is claimed, and cannot be tried on "
                f"({', '.join(map(str, subject.arguments))}); give an example, or names that say more"
            )


def title_of(fn: Callable[..., Any]) -> str:
    """The name of a callable."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return str(getattr(fn, "__name__", type(fn).__name__))


def _first(strategy: SearchStrategy[Any]) -> Sequence[Any]:
    """One of a strategy's draws, to see what the arguments are."""
    from ttransfer.testing._subject import for_all

    found: list[Any] = []
    for_all(strategy, found.append, examples=2)
    last = found[-1]
    return last if isinstance(last, (tuple, list)) else (last,)


def check_loss(
    fn: Callable[..., Any],
    example: Any = None,
    *,
    tags: Tags | None = None,
    reference: Callable[..., Any] | None = None,
    limits: Limits | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str | None = None,
    examples: int = 20,
) -> Report:
    """Judge a loss by all laws that its arguments' names and its tags claim.

    Args:
        fn: as for `loss_trial`, and so are the others.
        example: an example of the arguments, or a strategy for them.
        tags: claims beyond what the names say.
        reference: a slow formula for the same.
        limits: name -> (loss) -> (value, what it should be).
        expected_failed_checks: law -> why it does not hold.
        name: of the loss.
        examples: how many inputs each law draws, about.

    Returns:
        The report, which also says which laws the loss seems to obey though nobody claimed them.

    Raises:
        LawBroken: for a law that is broken: which, the smallest input found, the numbers and the likely cause.
        TransferError: if the loss cannot be called.

    Example:
        >>> import ttransfer as tt
        >>> def half(student, teacher):
        ...     return ((student - teacher) ** 2).mean() / 2
        >>> check_loss(half)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ttransfer.testing._law.LawBroken: half obeys ... laws and fails 1. ...
        detached: An argument that only shows the way, a teacher's, gets no gradient...
    """
    trial = loss_trial(
        fn,
        example,
        tags=tags,
        reference=reference,
        limits=limits,
        expected_failed_checks=expected_failed_checks,
        name=name,
        examples=examples,
    )
    return demand(trial)
