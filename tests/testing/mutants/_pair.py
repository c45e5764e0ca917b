"""A right part and a wrong twin of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Pair(NamedTuple):
    """A right function beside a small, plausible change of it.

    Attributes:
        name: what was done, in kebab case: "kd-temperature-squared-dropped".
        kind: "loss", "adapter", "reparam", "weight_map" or "optimizer".
        right: the part as it should be.
        wrong: the part with the slip.
        why: where the slip was seen in real life, or why somebody would make it.
        example: what a user would give the checker; None lets a loss's argument names decide.
            Loss: a tuple of tensors. Adapter: a tensor like the features. Reparam: the base parameters.
            Weight map: (source, like). Optimizer: None.
        tags: the properties that the right part's author would claim, as keywords of the checker.
        reference: a slow formula for the same, if the author would have one. For an optimizer, a
            function of a list of parameters that returns a `torch.optim.Optimizer`.
        limits: name -> (function under test) -> (value, what it should be), if the author would know one.
        expected_failed_checks: law -> why the right part does not obey it.
    """

    name: str
    kind: str
    right: Any
    wrong: Any
    why: str
    example: Any = None
    tags: Mapping[str, Any] = {}
    reference: Callable[..., Any] | None = None
    limits: Mapping[str, Callable[[Any], tuple[Any, Any]]] = {}
    expected_failed_checks: Mapping[str, str] = {}
