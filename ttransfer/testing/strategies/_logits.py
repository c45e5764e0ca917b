"""Logits, probabilities and features: what losses are called with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.testing.strategies._check import known, shape_of
from ttransfer.testing.strategies._values import generic, grid, integers

__all__ = ["FEATURES", "LOGITS", "PROBABILITIES", "features", "logits", "probabilities"]

LOGITS = ("moderate", "generic", "confident", "tied", "degenerate")
PROBABILITIES = ("moderate", "generic", "uniform", "sparse", "certain")
FEATURES = ("moderate", "generic", "large", "collapsed", "duplicated", "constant", "zero")


def logits(shape: Sequence[int], *, family: str = "moderate") -> SearchStrategy[Tensor]:
    """Draw logits, float64.

    Args:
        shape: (n, classes) or (n, classes, ...); (n,) for logits of one class against the rest.
        family: "moderate" (multiples of a quarter within ±3), "generic" (smooth points), "confident"
            (one class of each row at 1000 or at -1000, the others within ±1), "tied" (-1, 0 and 1 only, no
            row with one largest class; a single class is at 0), "degenerate" (all rows zero, or all equal, or all
            equal with the first class 1000 lower).

    Returns:
        A strategy.

    Raises:
        TransferError: for what is no such shape, or a family that is not there.

    Example:
        >>> from hypothesis import find
        >>> find(logits((2, 3), family="confident"), lambda x: True)
        tensor([[1000.,    0.,    0.],
                [1000.,    0.,    0.]], dtype=torch.float64)
        >>> find(logits((2, 3), family="tied"), lambda x: x.any())
        tensor([[0., 0., 0.],
                [1., 0., 1.]], dtype=torch.float64)
    """
    shape, family = _classes("logits", shape, least=1), known("logits", family, LOGITS)
    if family == "generic":
        return generic(shape)
    return grid(shape) if family == "moderate" else _hard_logits(shape, family)


def _classes(what: str, shape: Sequence[int], *, least: int) -> tuple[int, ...]:
    wanted = "(n, classes) or (n, classes, ...), of whole numbers" + " or (n,)" * (least == 1)
    return shape_of(what, shape, least=least, wanted=wanted)


@st.composite
def _hard_logits(draw: DrawFn, shape: tuple[int, ...], family: str) -> Tensor:
    # One class against the rest is one column.
    n, classes, *rest = shape if len(shape) > 1 else (*shape, 1)
    hard = {"confident": _confident, "tied": _tied, "degenerate": _degenerate}[family]
    return hard(draw, (n, classes, *rest)).reshape(shape)


def _confident(draw: DrawFn, shape: tuple[int, ...]) -> Tensor:
    n, classes, *rest = shape
    others = integers(draw, shape, -2, 2).double() / 2
    choice = integers(draw, (n, 1, *rest), 0, 2 * max(1, classes) - 1)
    winner = torch.arange(classes).reshape(-1, *(1 for _ in rest)) == choice // 2
    return torch.where(winner, 1000 - 2000 * (choice % 2), others)


def _tied(draw: DrawFn, shape: tuple[int, ...]) -> Tensor:
    if shape[1] < 2:
        return torch.zeros(shape, dtype=torch.float64)
    x = integers(draw, shape, -1, 1)
    largest = x.amax(1, keepdim=True)
    # A largest class that is alone gets its neighbour beside it.
    alone = (x == largest).sum(1, keepdim=True) == 1
    neighbour = ((x == largest) & alone).roll(1, 1)
    return torch.where(neighbour, largest, x).double()


def _degenerate(draw: DrawFn, shape: tuple[int, ...]) -> Tensor:
    kind = draw(st.sampled_from(["zero", "equal", "far"]))
    if kind == "zero":
        return torch.zeros(shape, dtype=torch.float64)
    row = draw(grid((1, *shape[1:])))
    if kind == "far":
        row[:, :1] -= 1000.0
    return row.expand(shape).clone()


def probabilities(shape: Sequence[int], *, family: str = "moderate") -> SearchStrategy[Tensor]:
    """Draw probabilities, which sum to 1 over axis 1 to rounding; float64.

    Args:
        shape: (n, classes) or (n, classes, ...), with one class at least.
        family: "moderate" (ratios of small whole numbers), "generic" (the softmax of smooth points), both above 0;
            "uniform"; "sparse" (with a zero in each row, if there are two classes); "certain" (ones and zeros).

    Returns:
        A strategy; "moderate" shrinks to "uniform".

    Raises:
        TransferError: for what is no such shape, or a family that is not there.

    Example:
        >>> from hypothesis import find
        >>> find(probabilities((2, 2)), lambda p: p[1, 0] != p[1, 1])
        tensor([[0.5000, 0.5000],
                [0.3333, 0.6667]], dtype=torch.float64)
    """
    shape, family = _classes("probabilities", shape, least=2), known("probabilities", family, PROBABILITIES)
    if shape[1] == 0:
        raise TransferError(f"probabilities: no classes to share among in shape {shape!r}")
    return _probabilities(shape, family)


@st.composite
def _probabilities(draw: DrawFn, shape: tuple[int, ...], family: str) -> Tensor:
    n, classes, *rest = shape
    if family == "generic":
        return draw(generic(shape)).softmax(1)
    if family == "uniform":
        return torch.full(shape, 1 / classes, dtype=torch.float64)
    if family == "certain":
        choice = integers(draw, (n, 1, *rest), 0, classes - 1)
        return (torch.arange(classes).reshape(-1, *(1 for _ in rest)) == choice).double()
    shares = integers(draw, shape, 1, 8)
    if family == "sparse" and classes > 1:
        # What is above the row's least stays; a row of equals keeps its last class.
        shares = shares - shares.amin(1, keepdim=True)
        shares[:, -1] += shares.sum(1) == 0
    return shares / shares.sum(1, keepdim=True, dtype=torch.float64)


def features(shape: Sequence[int], *, family: str = "moderate") -> SearchStrategy[Tensor]:
    """Draw features, float64: vectors (n, d), maps (n, channels, height, width) or tokens (n, t, d).

    Args:
        shape: of the tensor.
        family: "moderate" (multiples of a quarter within ±3), "generic" (smooth points), "large" (thousands of
            moderate ones), "collapsed" (all rows equal), "duplicated" (rows taken from two, by turns; two rows are
            equal), "constant" (one number everywhere), "zero". No row of large, collapsed or duplicated ones is zero.

    Returns:
        A strategy.

    Raises:
        TransferError: for what is no shape (n, ...), or a family that is not there.

    Example:
        >>> from hypothesis import find
        >>> find(features((3, 2), family="duplicated"), lambda x: True)
        tensor([[1., 0.],
                [2., 0.],
                [1., 0.]], dtype=torch.float64)
    """
    shape = shape_of("features", shape, least=1, wanted="(n, ...), of whole numbers")
    family = known("features", family, FEATURES)
    if family == "generic":
        return generic(shape)
    return grid(shape) if family == "moderate" else _hard_features(shape, family)


@st.composite
def _hard_features(draw: DrawFn, shape: tuple[int, ...], family: str) -> Tensor:
    n = shape[0]
    if family == "zero":
        return torch.zeros(shape, dtype=torch.float64)
    if family == "constant":
        return torch.full(shape, draw(st.integers(-8, 8)) / 4, dtype=torch.float64)
    if family == "large":
        return 1000.0 * _nonzero(draw(grid(shape)))
    different = 1 if family == "collapsed" else min(2, max(1, n - 1))
    few = _nonzero(draw(grid((different, *shape[1:]))))
    if different == 2 and few.numel() and bool((few[0] == few[1]).all()):
        few[1].view(-1)[0] += 1.0 if few[1].view(-1)[0] >= 0 else -1.0
    return few[torch.arange(n) % different]


def _nonzero(x: Tensor) -> Tensor:
    """Put a 1 first into every row of zeros."""
    rows = x.reshape(x.shape[0], -1) if x.numel() else x.reshape(x.shape[0], 0)
    rows[:, :1] += (rows == 0).all(1, keepdim=True)
    return rows.reshape(x.shape)
