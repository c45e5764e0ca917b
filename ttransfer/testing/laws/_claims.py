"""Laws on what a loss says of its mean: whether it splits over rows, and over what it counts."""

from __future__ import annotations

import math
from typing import Any

import torch

from ttransfer._claims import claims_of
from ttransfer.testing._law import Broken, law
from ttransfer.testing._subject import Inputs, Subject, show
from ttransfer.testing.laws._tools import differs, far, whenever

__all__ = ["LAWS"]


def _one_domain(subject: Subject) -> bool:
    letters = {a.rows for a in subject.arguments if a.has_rows}
    return letters == {"n"} and not subject.tags.stochastic


def _splits(subject: Subject) -> bool | None:
    if not _one_domain(subject) or subject.fewest > 1 or subject.rows:
        return False
    return None if subject.tags.coupled is None else not subject.tags.coupled


@law(_splits)
def splits_over_rows(subject: Subject) -> None:
    """The loss of a batch is the mean of its parts' losses, by their counts.

    Broken by: statistics of the batch (a mean, a norm, a Gram matrix over rows), a sum for a mean, a count of the
    wrong things. Such a loss is another one when the batch is spread over ranks: claim coupled=True, or a count.
    """
    count = subject.tags.count or claims_of(subject.fn).count or _rows_of(subject)

    def part(inputs: Inputs, rows: slice) -> Inputs:
        pairs = zip(subject.arguments, inputs, strict=True)
        return tuple(a.take(x, rows) for a, x in pairs)

    def test(inputs: Inputs) -> None:
        n = next(x.shape[a.axis] for a, x in zip(subject.arguments, inputs, strict=True) if a.has_rows)
        whole, total, weights = subject.value(inputs), 0.0, 0.0
        for rows in (slice(0, 1), slice(1, n)):
            few = part(inputs, rows)
            weight = float(count(*few))
            if weight:
                total, weights = total + weight * subject.value(few), weights + weight
        if weights and math.isfinite(total) and far(whole, total / weights):
            raise differs(
                subject, inputs, "whole, and as the mean of its first row and the others, it is", whole, total / weights
            )

    whenever(subject, test, rows=(2, 5))


def _rows_of(subject: Subject) -> Any:
    first, axis = next((i, a.axis) for i, a in enumerate(subject.arguments) if a.has_rows)
    return lambda *inputs: inputs[first].shape[axis]


@law(lambda s: s.tags.ignore_index is not None and not s.rows and any(a.kind == "labels" for a in s.arguments))
def ignores_labels(subject: Subject) -> None:
    """A row whose label is to be ignored changes neither value nor gradient.

    Broken by: the label taken as a class, a mean over all rows rather than those that count.
    """
    at = next(i for i, a in enumerate(subject.arguments) if a.kind == "labels")
    ignored = subject.tags.ignore_index

    def test(inputs: Inputs) -> None:
        labels = inputs[at].clone()
        labels[-1:] = ignored
        if bool((labels == ignored).all()):
            return
        marked = (*inputs[:at], labels, *inputs[at + 1 :])
        pairs = zip(subject.arguments, marked, strict=True)
        moved = tuple(
            torch.cat([a.take(x, slice(-1)), a.take(x, slice(-1, None)) + 1], a.axis)
            if a.floating and a.has_rows
            else x
            for a, x in pairs
        )
        if far(subject.value(marked), subject.value(moved)):
            what = "before and after its ignored last row changed it is"
            raise differs(subject, marked, what, subject.value(marked), subject.value(moved))
        pairs = zip(subject.arguments, marked, strict=True)
        without = tuple(a.take(x, slice(-1)) for a, x in pairs)
        if far(subject.value(marked), subject.value(without)):
            what = "with its ignored last row and without it is"
            raise differs(subject, marked, what, subject.value(marked), subject.value(without))
        for i, grad in subject.gradients(marked)[1].items():
            if subject.arguments[i].has_rows and bool((subject.arguments[i].take(grad, -1) != 0).any()):
                raise Broken(f"its ignored last row gets a gradient\n{show(subject, marked, gradient=grad)}")

    whenever(subject, test, "generic", rows=(2, 5))


LAWS = (splits_over_rows, ignores_labels)
