"""Weight maps on trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import WeightMap
from ttransfer.testing._law import Broken, Report, Trial, demand
from ttransfer.testing.laws import _weight_map
from ttransfer.testing.laws._map_subject import MapSubject, Trees, title_of, tried
from ttransfer.testing.laws._map_trees import Tensors, at_random, shapes
from ttransfer.testing.laws._weight_map_plan import plan_of

__all__ = ["check_weight_map", "weight_map_trial"]


def weight_map_trial(
    map: WeightMap,
    src: Mapping[str, Tensor],
    like: Mapping[str, Tensor],
    *,
    verbatim: bool | None = None,
    reference: Callable[[Any, Any], Mapping[str, Tensor]] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str | None = None,
    examples: int = 15,
) -> Trial:
    """Put a weight map on trial, without judging it yet: for `judge` and `parametrize_with_checks`.

    Args:
        map: the `WeightMap`.
        src: source tensors that it is for. Their values will vary; what is positive throughout stays so.
        like: target tensors.
        verbatim: whether what is made of one source tensor of its own shape is that tensor, as in renaming, and not
            that tensor transposed, say; None looks at it and reports, False does not ask.
        reference: (src, like) -> parameters: a slow formula for `apply`.
        expected_failed_checks: law -> why it does not hold. A law named here that holds is a failure.
        name: of the map, in ids and reports.
        examples: how many inputs each law draws, about.

    Raises:
        TransferError: if it is no weight map, or `src` or `like` no tensors.

    Example:
        >>> import torch, ttransfer as tt
        >>> src, like = {"head.weight": torch.ones(2, 3)}, {"fc.weight": torch.zeros(2, 3)}
        >>> trial = weight_map_trial(tt.weights.rename({"head": "fc"}), src, like)
        >>> trial.taken
        'a source: head.weight (2, 3); a target: fc.weight (2, 3)'
        >>> len(tt.testing.judge(trial, only=["plan-agrees", "verbatim"]).failed)
        0
    """
    title = name or title_of(map, WeightMap)
    for what, tensors in (("src", src), ("like", like)):
        if not isinstance(tensors, Mapping) or not all(isinstance(x, Tensor) for x in tensors.values()):
            raise TransferError(f"{title}: {what} must be a dict of tensors, got {shown(tensors)}")
    subject = _subject(title, map, dict(src), dict(like), verbatim, reference, examples)
    taken = f"a source: {shapes(src)}; a target: {shapes(like)}"
    return Trial(title, subject, _weight_map.LAWS, taken, dict(expected_failed_checks or {}))


def _subject(
    title: str,
    map: WeightMap,
    src: Tensors,
    like: Tensors,
    verbatim: bool | None,
    reference: Callable[[Any, Any], Mapping[str, Tensor]] | None,
    examples: int,
) -> MapSubject:
    def sample(seed: int, rows: int, at_start: bool) -> Trees:
        return at_random(src, 2 * seed), at_random(like, 2 * seed + 1)

    def drawn(family: str, rows: tuple[int, int]) -> SearchStrategy[tuple[int, Trees]]:
        return st.integers(0, 2**12).map(lambda seed: (seed, sample(seed, 0, True)))

    def make(generator: torch.Generator, dtype: torch.dtype, variant: int) -> Any:
        return {}

    subject = MapSubject(
        title,
        map,
        _weight_map.ARGUMENTS,
        map.apply,
        sample,
        drawn,
        make,
        own=-1,
        given=0,
        axes=(0, None),
        example=src,
        # Loading happens once: a map that compiles may be part of a step, and one that does not is no less right.
        claims={"verbatim": verbatim, "learns through": True, "one graph": None},
        reference=reference,
        examples=examples,
    )
    subject = tried(subject)
    try:
        plan_of(subject, sample(0, 0, True))
    except Broken as broken:
        return subject._replace(trouble=subject.trouble or str(broken))
    return subject


def check_weight_map(
    map: WeightMap,
    src: Mapping[str, Tensor],
    like: Mapping[str, Tensor],
    *,
    verbatim: bool | None = None,
    reference: Callable[[Any, Any], Mapping[str, Tensor]] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str | None = None,
    examples: int = 15,
) -> Report:
    """Judge a weight map by all laws: that its plan is true and whole, and that nothing is skipped in silence.

    Args:
        map: as for `weight_map_trial`, and so are the others.
        src: source tensors that it is for.
        like: target tensors.
        verbatim: whether what is made of one source tensor of its own shape is that tensor.
        reference: (src, like) -> parameters: a slow formula.
        expected_failed_checks: law -> why it does not hold.
        name: of the map.
        examples: how many inputs each law draws, about.

    Returns:
        The report, which also says which laws hold though nobody claimed them.

    Raises:
        LawBroken: for a law that is broken: which, the smallest input found, the numbers and the likely cause.
        TransferError: if it is no weight map, or `src` or `like` no tensors.

    Example:
        >>> import torch, ttransfer as tt
        >>> def what_fits(src, like):
        ...     return {name: src[name] if name in src else x for name, x in like.items()}
        >>> def all_is_well(src, like):
        ...     return tt.Plan({name: tt.Made((name,)) for name in like})
        >>> lenient = tt.WeightMap(what_fits, all_is_well)
        >>> check_weight_map(lenient, {"w": torch.ones(2)}, {"w": torch.ones(2)})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ttransfer.testing._law.LawBroken: what_fits obeys ... laws and fails ...
        nothing-silent: A target without a source keeps its old values only if the plan says so.
          which has no source, 'no_such_layer.no_such_tensor' keeps the target's values, and nothing is raised
        ...
    """
    trial = weight_map_trial(
        map,
        src,
        like,
        verbatim=verbatim,
        reference=reference,
        expected_failed_checks=expected_failed_checks,
        name=name,
        examples=examples,
    )
    return demand(trial)
