"""Tensors that shrink to something a person can read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.testing.strategies._check import finite, known, positive, shape_of, whole

__all__ = ["generic", "grid", "integers", "masks", "orthogonal", "repeated", "seeded"]

LIMIT = 48  # numbers after these are drawn by one seed, which is quick and fits into Hypothesis's budget
MASKS = ("moderate", "single", "full", "empty")
ORTHOGONAL = ("moderate", "generic")


def seeded(seed: int) -> torch.Generator:
    """Return a generator of this seed."""
    return torch.Generator().manual_seed(seed)


def integers(draw: DrawFn, shape: Sequence[int], low: int, high: int) -> Tensor:
    """Draw int64 from `low` to `high`: the first numbers one by one, and those after 48 by one seed.

    Each shrinks to what is nearest 0, those of the seed all at once. The first ones are drawn one by one in a large
    tensor too, for what takes fewer choices counts as simpler, and a large tensor must not.
    """
    shape = tuple(shape)
    number = math.prod(shape)
    single = min(number, LIMIT)
    seed = draw(st.integers(0, 2**16)) if number > single else 0  # first: what is drawn first shrinks first
    drawn = torch.tensor(draw(st.lists(st.integers(low, high), min_size=single, max_size=single)), dtype=torch.int64)
    if seed:
        more = torch.randint(low, high + 1, (number - single,), generator=seeded(seed))
    else:
        more = torch.full((number - single,), min(max(low, 0), high), dtype=torch.int64)
    return torch.cat([drawn, more]).reshape(shape)


def generic(shape: Sequence[int], *, scale: float = 2.0) -> SearchStrategy[Tensor]:
    """Draw normal numbers of three decimals, no two alike but by chance; float64.

    They are drawn by a seed, so they do not shrink, and a law that needs a smooth point can use them.

    Args:
        shape: of the tensor.
        scale: their standard deviation.

    Returns:
        A strategy.

    Raises:
        TransferError: for what is no shape, or no positive scale.

    Example:
        >>> from hypothesis import find
        >>> find(generic((2, 3)), lambda x: True).unique().shape
        torch.Size([6])
    """
    shape, scale = shape_of("generic", shape), positive("generic", "scale", scale)

    def made(seed: int) -> Tensor:
        return (torch.randn(shape, generator=seeded(seed), dtype=torch.float64) * scale * 1000).round() / 1000

    return st.integers(0, 2**16).map(made)


def grid(shape: Sequence[int], *, low: float = -3.0, high: float = 3.0, step: float = 0.25) -> SearchStrategy[Tensor]:
    """Draw multiples of `step`, which shrink towards 0 one by one; float64.

    The numbers after the first 48 are drawn by a seed, and shrink all at once.

    Args:
        shape: of the tensor.
        low: the least number.
        high: the largest number.
        step: the distance of two.

    Returns:
        A strategy.

    Raises:
        TransferError: for what is no shape, no positive step, or a range without a multiple of it.

    Example:
        >>> from hypothesis import find
        >>> find(grid((2, 2)), lambda x: x.sum() > 1)
        tensor([[0.0000, 0.0000],
                [0.0000, 1.2500]], dtype=torch.float64)
    """
    shape, step = shape_of("grid", shape), positive("grid", "step", step)
    low, high = finite("grid", "low", low), finite("grid", "high", high)
    # 0.3 / 0.1 is a little less than 3.
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if first > last:
        raise TransferError(f"grid: no multiple of {step!r} from {low!r} to {high!r}")
    return _grid(shape, first, last, step)


@st.composite
def _grid(draw: DrawFn, shape: tuple[int, ...], first: int, last: int, step: float) -> Tensor:
    return integers(draw, shape, first, last).double() * step


def repeated(rows: SearchStrategy[Tensor], *, count: int) -> SearchStrategy[Tensor]:
    """Draw a tensor whose rows are all taken from few.

    Args:
        rows: a strategy for the few, (k, ...).
        count: the number of rows wanted.

    Returns:
        A strategy for tensors (count, ...) of the dtype of the few.

    Raises:
        TransferError: for what is no strategy or no count; when drawn, for a tensor without rows.

    Example:
        >>> from hypothesis import find
        >>> find(repeated(grid((2, 1)), count=3), lambda x: x.unique(dim=0).shape[0] == 2)
        tensor([[0.0000],
                [0.0000],
                [0.2500]], dtype=torch.float64)
    """
    if not isinstance(rows, SearchStrategy):
        raise TransferError(f"repeated: rows must be a strategy such as grid((2, 3)), got {shown(rows)}")
    return _repeated(rows, whole("repeated", "count", count, least=0))


@st.composite
def _repeated(draw: DrawFn, rows: SearchStrategy[Any], count: int) -> Tensor:
    few = draw(rows)
    if not isinstance(few, Tensor) or few.ndim == 0 or few.shape[0] == 0:
        raise TransferError(f"repeated: wanted a tensor with rows to take, the strategy drew {shown(few)}")
    return few[integers(draw, (count,), 0, few.shape[0] - 1)]


def masks(shape: Sequence[int], *, family: str = "moderate") -> SearchStrategy[Tensor]:
    """Draw masks, bool; True is what stays. A row is what lies along the last axis.

    Args:
        shape: of the mask, one dimension at least.
        family: "moderate" (something of each row stays), "single" (one of each row stays), "full", "empty".

    Returns:
        A strategy; it shrinks to masks that let everything stay, or the first.

    Raises:
        TransferError: for what is no shape, rows of nothing, or a family that is not there.

    Example:
        >>> from hypothesis import find
        >>> find(masks((2, 3)), lambda x: not x.all())
        tensor([[ True,  True,  True],
                [ True,  True, False]])
    """
    wanted = "(..., n), with n from 1 on"
    shape, family = shape_of("masks", shape, least=1, wanted=wanted), known("masks", family, MASKS)
    if shape[-1] == 0:
        raise TransferError(f"masks: shape must be {wanted}, got {shape!r}")
    return _masks(shape, family)


@st.composite
def _masks(draw: DrawFn, shape: tuple[int, ...], family: str) -> Tensor:
    if family in ("full", "empty"):
        return torch.full(shape, family == "full")
    if family == "single":
        return integers(draw, shape[:-1], 0, shape[-1] - 1)[..., None] == torch.arange(shape[-1])
    mask = integers(draw, shape, 0, 1) == 0
    mask[..., 0] |= ~mask.any(-1)
    return mask


def orthogonal(size: int, *, family: str = "moderate") -> SearchStrategy[Tensor]:
    """Draw orthogonal matrices, Q Qᵀ = I to rounding; float64.

    Args:
        size: of the matrix, (size, size).
        family: "moderate" (a few rotations by an angle whose sine and cosine are 0.6 and 0.8, two axes
            exchanged, a sign turned: numbers of few decimals) or "generic" (any, by a seed).

    Returns:
        A strategy; "moderate" shrinks to the identity.

    Raises:
        TransferError: for a size below 1, or a family that is not there.

    Example:
        >>> from hypothesis import find
        >>> find(orthogonal(2), lambda x: x[0, 1] != 0)
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    return _orthogonal(whole("orthogonal", "size", size, least=1), known("orthogonal", family, ORTHOGONAL))


@st.composite
def _orthogonal(draw: DrawFn, size: int, family: str) -> Tensor:
    if family == "generic":
        q, r = torch.linalg.qr(draw(generic((size, size))))
        return q * torch.where(r.diagonal() < 0, -1.0, 1.0)  # else all have one determinant, LAPACK's choice
    matrix = torch.eye(size, dtype=torch.float64)
    axis = st.integers(0, size - 1)
    for i, j, kind in draw(st.lists(st.tuples(axis, axis, st.integers(0, 2)), max_size=4)):
        if i == j:
            matrix[i] = 0.0 - matrix[i]  # no -0.0
        elif kind == 0:
            matrix[[i, j]] = matrix[[j, i]]
        else:
            cosine, sine = (0.8, 0.6) if kind == 1 else (0.6, 0.8)
            matrix[i], matrix[j] = cosine * matrix[i] - sine * matrix[j], sine * matrix[i] + cosine * matrix[j]
    return matrix
