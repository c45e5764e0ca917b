"""Adapters on trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import Adapter
from ttransfer.testing._law import Broken, Report, Trial, demand
from ttransfer.testing.laws import _adapter
from ttransfer.testing.laws._map_subject import MapSubject, Trees, first_line, flat, title_of, tried
from ttransfer.testing.laws._map_trees import Tensors, change, moved, seeded, shapes

__all__ = ["adapter_trial", "check_adapter"]

SEEDS = 3
ROWS = 4  # of the feature that init is shown


def adapter_trial(
    adapter: Adapter,
    like: Tensor,
    *,
    identity: bool | None = None,
    rows_apart: bool = True,
    reference: Callable[[Any, Any], Tensor] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str | None = None,
    examples: int = 15,
) -> Trial:
    """Put an adapter on trial, without judging it yet: for `judge` and `parametrize_with_checks`.

    Args:
        adapter: the `Adapter`.
        like: a feature of the shape that it is for, rows first. The number of rows and all values will vary; it may be
            a meta tensor.
        identity: whether it changes nothing at the start; None looks at it and reports, False does not ask.
        rows_apart: False if rows may have to do with each other, as under batch normalisation.
        reference: (params, feature) -> result: a slow formula for `apply`.
        expected_failed_checks: law -> why it does not hold. A law named here that holds is a failure.
        name: of the adapter, in ids and reports.
        examples: how many inputs each law draws, about.

    Raises:
        TransferError: if it is no adapter, or `like` no feature.

    Example:
        >>> import torch, ttransfer as tt
        >>> trial = adapter_trial(tt.adapters.linear(3), torch.empty(8, 2))
        >>> trial.taken
        'a feature (n, 2); its parameters: weight (3, 2), bias (3,)'
        >>> len(tt.testing.judge(trial, only=["rows-apart", "trains"]).failed)
        0
    """
    title = name or title_of(adapter, Adapter)
    if not isinstance(like, Tensor) or not like.is_floating_point() or like.ndim == 0:
        raise TransferError(f"{title}: like must be a feature of real numbers with rows, got {shown(like)}")
    subject = _subject(title, adapter, like, reference, examples, {"identity": identity, "rows apart": rows_apart})
    sizes = ", ".join(["n", *map(str, like.shape[1:])]) + ("," if like.ndim == 1 else "")
    own = "" if subject.trouble else f"; its parameters: {shapes(subject.parameters)}"
    taken = f"a feature ({sizes}){own}"
    return Trial(title, subject, _adapter.LAWS, taken, dict(expected_failed_checks or {}))


def _subject(
    title: str,
    adapter: Adapter,
    like: Tensor,
    reference: Callable[[Any, Any], Tensor] | None,
    examples: int,
    claims: Mapping[str, bool | None],
) -> MapSubject:
    shape = tuple(like.shape[1:])
    trouble, starts = "", ()
    try:
        starts = tuple(_started(adapter, shape, seed) for seed in range(SEEDS))
    except Broken as broken:
        trouble = str(broken)

    def function(params: Tensors, given: Tensors) -> Tensors:
        return {"feature": adapter.apply(params, given["feature"])}

    def slow(params: Tensors, given: Tensors) -> Tensors:
        return {"feature": reference(params, given["feature"])} if reference else {}

    def sample(seed: int, rows: int, at_start: bool) -> Trees:
        params = starts[seed % SEEDS]
        return params if at_start else moved(params, seed), {"feature": _adapter.feature((rows, *shape), seed)}

    def drawn(family: str, rows: tuple[int, int]) -> SearchStrategy[tuple[int, Trees]]:
        return _adapter.feature_cases(starts, shape, family, rows)

    def make(generator: torch.Generator, dtype: torch.dtype, variant: int) -> Any:
        return _init(adapter, generator, shape, dtype)

    subject = MapSubject(
        title,
        adapter,
        _adapter.ARGUMENTS,
        function,
        sample,
        drawn,
        make,
        own=0,
        given=1,
        axes=(0, 0),
        example=like,
        claims=claims,
        reference=slow if reference else None,
        examples=examples,
        trouble=trouble,
    )
    return subject if trouble else tried(subject)


def _init(adapter: Adapter, generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Parameters, by whatever `like` init takes: that it takes a meta tensor is a law of its own."""
    state = generator.get_state()
    try:
        return adapter.init(generator, torch.empty((ROWS, *shape), dtype=dtype, device="meta"))
    except Exception:
        generator.set_state(state)
        return adapter.init(generator, _adapter.feature((ROWS, *shape), 0).to(dtype))


def _started(adapter: Adapter, shape: tuple[int, ...], seed: int) -> Tensors:
    """Parameters in float64."""
    try:
        params = flat(_init(adapter, seeded(seed), shape, torch.float64))
    except Broken:
        raise
    except Exception as error:
        raise Broken(f"init raised {first_line(error)}") from error
    # That they hold numbers is a law of its own.
    return change(params, lambda x: _adapter.feature(tuple(x.shape), seed) if x.is_meta else x)


def check_adapter(
    adapter: Adapter,
    like: Tensor,
    *,
    identity: bool | None = None,
    rows_apart: bool = True,
    reference: Callable[[Any, Any], Tensor] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str | None = None,
    examples: int = 15,
) -> Report:
    """Judge an adapter by all laws: how it begins, what it computes, that it learns, and in which modes.

    Args:
        adapter: as for `adapter_trial`, and so are the others.
        like: a feature of the shape that it is for, rows first.
        identity: whether it changes nothing at the start.
        rows_apart: False if rows may have to do with each other.
        reference: (params, feature) -> result: a slow formula.
        expected_failed_checks: law -> why it does not hold.
        name: of the adapter.
        examples: how many inputs each law draws, about.

    Returns:
        The report, which also says which laws hold though nobody claimed them.

    Raises:
        LawBroken: for a law that is broken: which, the smallest input found, the numbers and the likely cause.
        TransferError: if it is no adapter, or `like` no feature.

    Example:
        >>> import torch, ttransfer as tt
        >>> def two_zeros(generator, like):
        ...     return {"a": like.new_zeros(like.shape[-1], device="cpu"), "b": like.new_zeros((), device="cpu")}
        >>> gated = tt.Adapter(two_zeros, lambda params, x: x + params["a"] * params["b"] * x)
        >>> check_adapter(gated, torch.empty(8, 2), name="gated")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ttransfer.testing._law.LawBroken: gated obeys ... laws and fails 1. ...
        trains: Every parameter learns: it has a gradient at the start, or after one step of descent on a quadratic.
          no gradient at the start, nor one step later: a, b
        ...
    """
    trial = adapter_trial(
        adapter,
        like,
        identity=identity,
        rows_apart=rows_apart,
        reference=reference,
        expected_failed_checks=expected_failed_checks,
        name=name,
        examples=examples,
    )
    return demand(trial)
