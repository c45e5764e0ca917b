"""Labels: classes that are there often, seldom, or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.testing.strategies._check import known, shape_of, whole
from ttransfer.testing.strategies._values import integers

__all__ = ["LABELS", "labels"]

LABELS = ("balanced", "long-tailed", "one class", "two classes")


def labels(
    shape: Sequence[int], *, classes: int, family: str = "balanced", ignore_index: int | None = None
) -> SearchStrategy[Tensor]:
    """Draw labels, int64.

    Args:
        shape: (n,) or (n, ...).
        classes: labels are 0 ... classes - 1.
        family: "balanced" (each class as likely as another), "long-tailed" (of three labels on, more than half are
            the first class, and not all), "one class", "two classes" (two of them, by turns). What a family says
            holds for the labels that are not ignored.
        ignore_index: a label that some get instead, though never all; it may be one of the classes.

    Returns:
        A strategy.

    Raises:
        TransferError: for what is no such shape, a family that is not there, or too few classes for it (those that
            are ignored not counted).

    Example:
        >>> from hypothesis import find
        >>> find(labels((4,), classes=3, family="long-tailed"), lambda y: True)
        tensor([0, 0, 1, 0])
        >>> find(labels((3,), classes=3, ignore_index=-100), lambda y: (y < 0).any())
        tensor([   0,    0, -100])
    """
    size = shape_of("labels", shape, wanted="(n,) or (n, ...), of whole numbers")
    number = whole("labels", "classes", classes, least=1)
    family = known("labels", family, LABELS)
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
        raise TransferError(f"labels: ignore_index must be a whole number or None, got {ignore_index!r}")
    there = [label for label in range(number) if label != ignore_index]
    least = 2 if family in ("long-tailed", "two classes") else 1
    if len(there) < least:
        ignored = f", of which {ignore_index} is ignored" if ignore_index in range(number) else ""
        raise TransferError(f"labels: {family!r} needs {least} classes, got classes={number}{ignored}")
    return _labels(size, torch.tensor(there), family, ignore_index)


@st.composite
def _labels(draw: DrawFn, size: tuple[int, ...], there: Tensor, family: str, ignore_index: int | None) -> Tensor:
    number = math.prod(size)
    if ignore_index is None:
        return _drawn(draw, number, there, family).reshape(size)
    kept = integers(draw, (number,), 0, 1) == 0
    # The families hold for what is left, so enough must be.
    left = {"two classes": 2, "long-tailed": 3}.get(family, 1)
    spare = (~kept).nonzero()[: max(0, left - int(kept.sum()))]
    kept[spare] = True
    out = torch.full((number,), ignore_index)
    # As many are drawn whatever is ignored, or to ignore more would count as simpler; a family holds for any first few.
    out[kept] = _drawn(draw, number, there, family)[: int(kept.sum())]
    return out.reshape(size)


def _drawn(draw: DrawFn, number: int, there: Tensor, family: str) -> Tensor:
    last = len(there) - 1
    turn = torch.arange(number)
    if family == "one class":
        index = torch.full((number,), draw(st.integers(0, last)))
    elif family == "two classes":
        first, step = draw(st.integers(0, last)), draw(st.integers(1, last))
        index = (first + step * (turn % 2)) % len(there)
    elif family == "long-tailed":
        index = torch.zeros(number, dtype=torch.int64)
        index[turn % 4 == 2] = integers(draw, (len(turn[turn % 4 == 2]),), 1, last)
    else:
        index = integers(draw, (number,), 0, last)
    return there[index]
