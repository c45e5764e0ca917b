"""Changing a step: the expression is changed and everything done to the step since is done again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ttransfer._errors import TransferError, nearest
from ttransfer.core._alternate import Alternation, build_alternation
from ttransfer.core._options import as_groups, as_mapping, as_patterns
from ttransfer.core._spec import Expression
from ttransfer.core._step import Step, build_step
from ttransfer.core._transforms import Transform

__all__ = ["rebuild", "replace"]


def rebuild(expression: Any, transforms: tuple[Transform, ...]) -> Step:
    """Build an expression and apply transforms to it in order."""
    step = build_alternation(expression) if isinstance(expression, Alternation) else build_step(expression)
    for transform in transforms:
        step = transform.apply(step)
    return step


def replace(step: Step, **changes: Any) -> Step:
    """Return a step with terms or options changed; ensembles, sweeps and compilation are kept.

    Args:
        step: any step. It is not changed.
        **changes: a term's name with a new Term, or None to leave it out; an option of `tt.step` with a new
            value (``terms`` stands for all terms); for an alternation, a phase's name with a new step, or None.

    Raises:
        TransferError: for a term that is to be left out and is not there.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> train = tt.step({"net": tt.functional(torch.nn.Linear(2, 2))}, tt.optim.sgd(0.1), trainable=("net",),
        ...                 task=tt.term(F.cross_entropy, "net(source)", "source.y"))
        >>> both = tt.replace(train, coral=tt.term(tt.align.coral, "net(source)", "net(target)"))
        >>> list(both.spec.expression.terms), list(train.spec.expression.terms)
        (['task', 'coral'], ['task'])
    """
    expression = step.spec.expression
    if isinstance(expression, Alternation):
        return rebuild(_replaced_phases(expression, changes), step.spec.transforms)
    return rebuild(_replaced(expression, changes), step.spec.transforms)


def _replaced(expression: Expression, changes: dict[str, Any]) -> Expression:
    fields = expression._asdict()
    terms = as_mapping("terms", changes.get("terms", expression.terms))
    convert: dict[str, Callable[[Any], Any]] = {
        "trainable": as_patterns,
        "joint": as_groups,
        **{name: functools.partial(as_mapping, name) for name in ("nets", "buffers", "ema")},
    }
    for name, value in changes.items():
        if name == "terms":
            continue
        if name in fields:
            fields[name] = convert.get(name, lambda v: v)(value)
        elif value is not None:
            terms[name] = value
        elif name in terms:
            del terms[name]
        else:
            raise TransferError(f"replace: no term {name!r} to leave out{nearest(name, terms)}")
    fields["terms"] = terms
    return Expression(**fields)


def _replaced_phases(alternation: Alternation, changes: dict[str, Any]) -> Alternation:
    phases = dict(alternation.phases)
    order = tuple(changes.pop("order", alternation.order))
    for name, value in changes.items():
        if isinstance(value, Step):
            phases[name] = value
            order = order if name in order else (*order, name)
        elif value is None and name in phases:
            del phases[name]
            order = tuple(phase for phase in order if phase != name)
        else:
            raise TransferError(
                f"replace: the phases of an alternation are steps; got {name}={value!r}{nearest(name, phases)}"
            )
    return Alternation(phases, order)
