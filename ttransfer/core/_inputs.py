"""Checking what enters a step from the outside of a transform or a graph, where values can be looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree
from ttransfer.core._alternate import Alternation
from ttransfer.core._forward import check_batch
from ttransfer.core._infer import infer, piped_readings
from ttransfer.core._members import members_of
from ttransfer.core._paths import Field, Forward
from ttransfer.core._reads import flat
from ttransfer.core._spec import Expression, Plan, plan_of
from ttransfer.core._states import state_check
from ttransfer.core._step import Spec
from ttransfer.core._types import Batch, State
from ttransfer.core._update import params_of

__all__ = ["Inputs", "Labels", "check_labels", "inputs_of", "label_checks", "unshared"]


class Inputs(NamedTuple):
    """What a step takes.

    Attributes:
        parts: the expressions inside with their plans, under the phases' names, or "" for the one of a plain step.
        belongs: (state, depth) -> None, raising for a state of another step.
        depth: how many leading dimensions of the state count members.
        stacked: how many leading dimensions of a batch do.
    """

    parts: Mapping[str, tuple[Expression, Plan]]
    belongs: Callable[[State, int], None]
    depth: int
    stacked: int


class Labels(NamedTuple):
    """Integer labels that must be classes."""

    term: str
    domain: str
    field: str
    classes: int
    ignored: int


def inputs_of(spec: Spec) -> Inputs:
    """Find out what a step takes."""
    expression = spec.expression
    found: dict[str, Expression] = (
        {name: phase.spec.expression for name, phase in expression.phases.items()}
        if isinstance(expression, Alternation)
        else {"": expression}
    )
    parts = {name: (one, plan_of(one)) for name, one in found.items()}
    stacked = sum(t.name == "ensemble" and t.options["batches"] == "stacked" for t in spec.transforms)
    return Inputs(parts, state_check(parts), members_of(spec.transforms), stacked)


def check(inputs: Inputs, state: State, batch: Batch) -> dict[str, dict[str, Tensor]]:
    """Check a state and a batch against what a step takes; return the part of the batch that it reads."""
    inputs.belongs(state, inputs.depth)
    if state.step.ndim != inputs.depth:
        raise TransferError(
            f"this state is stacked {state.step.ndim} deep and the step {inputs.depth}: use init of the same step"
        )
    found: dict[str, dict[str, Tensor]] = {}
    for _, plan in inputs.parts.values():
        for domain, fields in check_batch(plan, batch, inputs.stacked).items():
            found.setdefault(domain, {}).update(fields)
    return found


def label_checks(inputs: Inputs, state: State, batch: Mapping[str, Mapping[str, Tensor]]) -> list[Labels]:
    """Find the batch fields that are labels, and how many classes there are, by running on fake tensors."""
    found: list[Labels] = []
    for _ in range(inputs.depth):
        state = tree.map(lambda x: x[0], state)
    for _ in range(inputs.stacked):
        batch = tree.map(lambda x: x[0], batch)
    for phase, (expression, plan) in inputs.parts.items():
        asked = {name: term for name, term in expression.terms.items() if term.labels is not None}
        if not asked:
            continue
        fakes = infer(expression, plan, params_of(state, state.trainable), state.buffers, batch)
        for name, term in asked.items():
            scores, labels, ignored = term.labels or (0, 0, 0)
            reads = flat(term.reads)
            readings = piped_readings(name, term, fakes, state.trainable["terms"][(phase and f"{phase}.") + name])
            path, logits, given = reads[labels].path, readings[scores], readings[labels]
            plain = isinstance(reads[scores].path, Forward) and not reads[labels].pipes
            if isinstance(path, Field) and not path.picks and plain and not given.is_floating_point():
                classes = logits.shape[1 if logits.ndim > 1 else 0]
                found.append(Labels(name, path.domain, path.field, classes, ignored))
    return found


def check_labels(checks: Sequence[Labels], batch: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse labels that are no class: inside a graph they would read another row's memory or kill the device.

    Only labels on the CPU are looked at: to look at others would wait for the device at each step.
    """
    for one in checks:
        labels = batch[one.domain][one.field]
        if labels.device.type != "cpu":
            continue
        low, high = torch.aminmax(labels)
        if low >= 0 and high < one.classes:
            continue
        wrong = ((labels < 0) | (labels >= one.classes)) & (labels != one.ignored)
        if wrong.any():
            first = tuple(int(i) for i in wrong.nonzero()[0])
            raise TransferError(
                f"term {one.term!r}: labels {one.domain}.{one.field} must be 0 to {one.classes - 1} (or {one.ignored}, "
                f"ignored), found {int(labels[first])} at {list(first)}; {int(wrong.sum())} of {labels.numel()} are "
                "out of range"
            )


def unshared(state: State) -> None:
    """Refuse a state with two leaves in one storage, or with a leaf that is expanded or wants a gradient."""
    seen: dict[int, str] = {}
    for path, x in tree.paths(state).items():
        where = x.untyped_storage().data_ptr()
        if x.numel() and where in seen:
            raise TransferError(
                f"donate: {path} and {seen[where]} share a storage, so that writing one would change the other; "
                "clone one of them"
            )
        seen[where] = path
        if any(stride == 0 and size > 1 for size, stride in zip(x.shape, x.stride(), strict=True)):
            raise TransferError(f"donate: {path} is expanded, so it cannot be written; use .clone()")
        if x.requires_grad:
            raise TransferError(f"donate: {path} requires a gradient, so it cannot be written; use .detach()")


def leaf_ids(state: State) -> tuple[Any, ...]:
    """Which tensors a state is made of."""
    found: list[int] = []

    def walk(node: Any) -> None:  # by hand, for it is done at each step
        if isinstance(node, Tensor):
            found.append(id(node))
        else:
            for child in node.values() if isinstance(node, Mapping) else node:
                walk(child)

    walk(state)
    return tuple(found)
