"""Reparametrisations on trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import Reparam
from ttransfer.testing._law import Broken, Report, Trial, demand
from ttransfer.testing.laws import _reparam
from ttransfer.testing.laws._map_subject import MapSubject, Trees, first_line, flat, title_of, tried
from ttransfer.testing.laws._map_trees import Tensors, at_random, clones, moved, seeded, shapes

__all__ = ["check_reparam", "reparam_trial"]


def reparam_trial(
    reparam: Reparam,
    params: Mapping[str, Tensor],
    *,
    identity: bool | None = True,
    reference: Callable[[Any, Any], Mapping[str, Tensor]] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str | None = None,
    examples: int = 15,
) -> Trial:
    """Put a reparametrisation on trial, without judging it yet: for `judge` and `parametrize_with_checks`.

    Args:
        reparam: the `Reparam`.
        params: base parameters that it is for. Their values will vary; what is positive throughout stays so.
        identity: whether the delta changes nothing at the start; None looks at it and reports, False does not ask.
        reference: (base, delta) -> parameters: a slow formula for `apply`.
        expected_failed_checks: law -> why it does not hold. A law named here that holds is a failure.
        name: of the reparametrisation, in ids and reports.
        examples: how many inputs each law draws, about.

    Raises:
        TransferError: if it is no reparametrisation, or `params` no parameters.

    Example:
        >>> import torch, ttransfer as tt
        >>> base = {"fc.weight": torch.zeros(3, 4), "fc.bias": torch.zeros(3)}
        >>> trial = reparam_trial(tt.adapters.lora("fc.*", rank=1), base)
        >>> trial.taken
        'a base: fc.weight (3, 4), fc.bias (3,); a delta: fc.weight.lora_a (1, 4), fc.weight.lora_b (3, 1)'
        >>> len(tt.testing.judge(trial, only=["identity", "trains"]).failed)
        0
    """
    title = name or title_of(reparam, Reparam)
    if not isinstance(params, Mapping) or not all(isinstance(x, Tensor) for x in params.values()) or not params:
        raise TransferError(f"{title}: params must be a dict of tensors, name -> parameter, got {shown(params)}")
    subject = tried(_subject(title, reparam, dict(params), identity, reference, examples))
    taken = f"a base: {shapes(subject.example)}"
    if not subject.trouble:
        taken += f"; a delta: {shapes(subject.parameters)}"
    return Trial(title, subject, _reparam.LAWS, taken, dict(expected_failed_checks or {}))


def _subject(
    title: str,
    reparam: Reparam,
    params: Tensors,
    identity: bool | None,
    reference: Callable[[Any, Any], Mapping[str, Tensor]] | None,
    examples: int,
) -> MapSubject:
    def sample(seed: int, rows: int, at_start: bool) -> Trees:
        base = at_random(params, seed)
        try:
            delta = reparam.init(seeded(seed), clones(base))
        except Exception as error:
            raise Broken(f"init raised {first_line(error)}") from error
        delta = flat(delta)
        return base, delta if at_start else moved(delta, seed)

    def drawn(family: str, rows: tuple[int, int]) -> SearchStrategy[tuple[int, Trees]]:
        return st.integers(0, 2**12).map(lambda seed: (seed, sample(seed, 0, family == "start")))

    def make(generator: torch.Generator, dtype: torch.dtype, variant: int) -> Any:
        return reparam.init(generator, _reparam.start_of(params, dtype, variant))

    return MapSubject(
        title,
        reparam,
        _reparam.ARGUMENTS,
        reparam.apply,
        sample,
        drawn,
        make,
        own=1,
        given=0,
        axes=(None, 0),
        example=params,
        claims={"identity": identity, "learns through": True if reparam.trains_base else None},
        reference=reference,
        examples=examples,
    )


def check_reparam(
    reparam: Reparam,
    params: Mapping[str, Tensor],
    *,
    identity: bool | None = True,
    reference: Callable[[Any, Any], Mapping[str, Tensor]] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str | None = None,
    examples: int = 15,
) -> Report:
    """Judge a reparametrisation by all laws: how it begins, what it keeps, that it learns, and in which modes.

    Args:
        reparam: as for `reparam_trial`, and so are the others.
        params: base parameters that it is for.
        identity: whether the delta changes nothing at the start.
        reference: (base, delta) -> parameters: a slow formula.
        expected_failed_checks: law -> why it does not hold.
        name: of the reparametrisation.
        examples: how many inputs each law draws, about.

    Returns:
        The report, which also says which laws hold though nobody claimed them.

    Raises:
        LawBroken: for a law that is broken: which, the smallest input found, the numbers and the likely cause.
        TransferError: if it is no reparametrisation, or `params` no parameters.

    Example:
        >>> import torch, ttransfer as tt
        >>> def noisy(generator, params):
        ...     return {"by": torch.rand(3, generator=generator, dtype=params["w"].dtype)}
        >>> shift = tt.Reparam(noisy, lambda base, delta: {**base, "w": base["w"] + delta["by"]})
        >>> check_reparam(shift, {"w": torch.zeros(3)}, name="shift")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ttransfer.testing._law.LawBroken: shift obeys ... laws and fails 1. ...
        identity: A delta that has just been made changes nothing: training starts where the base is.
          at the start it changes 'w'
        ...
    """
    trial = reparam_trial(
        reparam,
        params,
        identity=identity,
        reference=reference,
        expected_failed_checks=expected_failed_checks,
        name=name,
        examples=examples,
    )
    return demand(trial)
