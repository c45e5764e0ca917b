"""Find out what a loss takes by calling it."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.testing._arguments import Argument, named
from ttransfer.testing._tags import Tags

__all__ = ["fewest_rows", "inferred", "only_rows"]

# In turn: rows of vectors, images, tokens. All real arguments are of one rank.
RANKS: tuple[tuple[int, ...] | None, ...] = ((), (3, 2), (3,))


def inferred(name: str, fn: Callable[..., Any], tags: Tags) -> tuple[tuple[Argument, ...], bool]:
    """Return the first reading of the arguments under which the loss runs, and whether domains must be of one size.

    Raises:
        TransferError: if it runs under none.
    """
    candidates = named(fn)
    errors: list[str] = []
    # The likeliest kinds in all ranks come before less likely kinds, and rows that are mere numbers come last.
    choices = list(itertools.product(*candidates))
    tries = itertools.chain(
        itertools.product(choices, RANKS, (False, True)), itertools.product(choices, (None,), (False, True))
    )
    best: tuple[tuple[Argument, ...], bool] | None = None
    for choice, rank, same in tries:
        arguments = tuple(_ranked(a, rank) for a in choice)
        if same and not {a.rows for a in arguments} >= {"n", "m"}:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.filterwarnings("error", message=".*size.*different")  # a wrong guess, broadcast
                value, other = (
                    fn(*(sample(a, tags, same, i + seed) for i, a in enumerate(arguments))) for seed in (0, 50)
                )
        except Exception as error:
            text = str(error).strip() or "no message"
            errors.append(f"{type(error).__name__}: {text.splitlines()[0]}")
            continue
        # Attention over channels runs on vectors, and is the same for all of them: that is no reading.
        if isinstance(value, Tensor) and value.ndim == 0 and not _alike(value, other):
            return arguments, same
        best = best or (arguments, same)
    if best:
        return best
    taken = ", ".join(str(c[0]) for c in candidates)
    raise TransferError(
        f"{name}: no arguments were found that it takes; with {taken} it raised {errors[0] if errors else 'nothing'}. "
        "Give an example: a tuple of its arguments"
    )


def _alike(value: Tensor, other: Tensor) -> bool:
    return torch.allclose(value, other, rtol=1e-6, atol=1e-7, equal_nan=True)


def fewest_rows(fn: Callable[..., Any], arguments: tuple[Argument, ...], same: bool) -> int:
    """The fewest rows, up to 4, that a loss does not refuse: what it stumbles over is no refusal."""
    for rows in (1, 2, 3):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fn(*(sample(a, Tags(), same, i, rows) for i, a in enumerate(arguments)))
        except (ValueError, AssertionError, NotImplementedError):  # TransferError is a ValueError
            continue
        except Exception:
            return rows
        return rows
    return 4


def only_rows(fn: Callable[..., Any], arguments: tuple[Argument, ...]) -> int | None:
    """The number of rows of an example, if the loss takes no more than those; None if it does."""
    shown = next((a.value.shape[a.axis] for a in arguments if a.has_rows), None)
    if shown is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fn(*(sample(a, Tags(), True, i, shown + 1) for i, a in enumerate(arguments)))
    except Exception:  # that is the answer
        return shown
    return None


def _ranked(a: Argument, rank: tuple[int, ...] | None) -> Argument:
    if a.kind not in ("logits", "features"):
        return a
    if rank is None:
        return a._replace(kind="features", shape=a.shape[:1])
    if not rank:
        return a
    # Tokens are (n, t, d), images (n, channels, height, width).
    shape = (a.shape[0], *rank, "d") if len(rank) == 1 else (a.shape[0], "d", *rank)
    return a._replace(kind="features", shape=shape)


def sample(a: Argument, tags: Tags, same: bool, seed: int, rows: int = 4) -> Any:
    """A plain float32 value for an argument."""
    rows = max(rows, tags.min_batch or 1)
    sizes = {"n": rows, "m": rows if same else rows + 1, "c": 3, "d": 4}
    shape = tuple(sizes[x] if isinstance(x, str) else x for x in a.shape)
    generator = torch.Generator().manual_seed(seed)
    if a.kind == "fixed":
        return a.value
    if a.kind == "labels":
        return (torch.arange(math.prod(shape)) % 2).reshape(shape)
    if a.kind == "mask":
        return torch.ones(shape, dtype=a.value.dtype if isinstance(a.value, Tensor) else torch.bool)
    value = torch.randn(shape, generator=generator)
    return value.softmax(-1) if a.kind == "probabilities" else value.abs() + 0.1 if a.kind == "weights" else value
