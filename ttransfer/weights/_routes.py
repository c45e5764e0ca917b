"""What a map is made of: one rule that says where each tensor comes from, which plan reads and apply carries out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import NOTHING, Made, Plan, WeightMap
from ttransfer.core._types import Params

__all__ = [
    "Route",
    "Routes",
    "Tensors",
    "all_on_meta",
    "as_one",
    "identity",
    "on_meta",
    "planned",
    "routed",
    "spelt",
    "taken",
    "titled",
    "twins",
    "want_map",
]

Tensors = Mapping[str, Tensor]


class Route(NamedTuple):
    """How one result is made.

    Attributes:
        sources: names of the source tensors that it is made of.
        make: (*source tensors) -> the result; None takes the one source as it is.
        how: what `make` does, in words that tell apart what differs: two results of the same tensors by the same
            words are one tensor.
        why: what decided on these sources, where it was not their names.
    """

    sources: tuple[str, ...]
    make: Callable[..., Tensor] | None = None
    how: str = ""
    why: str = ""


class Routes(NamedTuple):
    """What a map makes of a source for a target.

    Attributes:
        made: result name -> how it is made.
        kept: targets that stay as they are, as they may; they are results too.
        ambiguous: target -> the sources that may be meant.
        mismatched: target -> why what is for it does not fit; for maps that look at the target.
        unused: source -> why it goes nowhere.
    """

    made: dict[str, Route]
    kept: tuple[str, ...] = ()
    ambiguous: Mapping[str, tuple[str, ...]] = NOTHING
    mismatched: Mapping[str, str] = NOTHING
    unused: Mapping[str, str] = NOTHING


def taken(name: str) -> Route:
    """Take a source tensor as it is."""
    return Route((name,))


def want_map(whose: str, map: object) -> WeightMap:
    """Refuse what is no map.

    Raises:
        TransferError: with what makes one of it, where that is a call.
    """
    if isinstance(map, WeightMap):
        return map
    if callable(map) and not isinstance(map, torch.nn.Module):
        raise TransferError(f"{whose}: wanted a WeightMap, got the function {titled(map)}; call it: {titled(map)}(...)")
    raise TransferError(f"{whose}: wanted a WeightMap, got {shown(map)}")


def titled(function: Any) -> str:
    """A function's name."""
    return getattr(getattr(function, "func", function), "__name__", type(function).__name__)


def spelt(number: float) -> str:
    """A number for a plan; in a graph, where nobody reads plans and a number may be unknown, nothing."""
    return "" if torch.compiler.is_compiling() else f"{number:g}"


def routed(
    routes: Callable[[Tensors, Tensors], Routes], check: Callable[[Plan, Tensors, Tensors], None] | None = None
) -> WeightMap:
    """Make a WeightMap of a rule.

    Args:
        routes: (src, like) -> Routes; it looks at names, shapes and dtypes alone, never at values.
        check: (plan, src, like) raises for a plan that must not be carried out.
    """

    def plan(src: Tensors, like: Tensors) -> Plan:
        return planned(routes(src, like), src, like)

    def apply(src: Tensors, like: Tensors) -> Params:
        found = routes(src, like)
        if check is not None:
            check(planned(found, src, like), src, like)
        shared: dict[tuple[object, ...], Tensor] = {}
        new = {name: _made(route, src, shared) for name, route in found.made.items()}
        if not found.kept:
            return new
        both = {**new, **{name: like[name] for name in found.kept}}
        return {**{name: both[name] for name in like if name in both}, **both}

    return WeightMap(apply, plan)


def _made(route: Route, src: Tensors, shared: dict[tuple[object, ...], Tensor]) -> Tensor:
    """Carry out a route; what is made of one and the same tensor (tied weights) stays one tensor."""
    tensors = [src[name] for name in route.sources]
    if route.make is None:
        return tensors[0]
    if not tensors:
        return route.make()
    key = (*map(identity, tensors), route.how)
    if key not in shared:
        shared[key] = route.make(*tensors)
    return shared[key]


def twins(src: Tensors, parts: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Result -> the results that are made of the same tensors, itself among them: what is tied in all sources."""
    found: dict[tuple[object, ...], list[str]] = {}
    for name, sources in parts.items():
        found.setdefault(tuple(_beneath(src[source]) for source in sources), []).append(name)
    return {name: tuple(names) for names in found.values() for name in names}


def as_one(tensors: Tensors) -> Params:
    """The same tensors, tied weights by one object: in a graph nothing else tells what is one tensor."""
    if torch.compiler.is_compiling():
        return dict(tensors)
    found: dict[tuple[object, ...], Tensor] = {}
    return {name: found.setdefault((identity(x), x.requires_grad), x) for name, x in tensors.items()}


def _beneath(x: Tensor) -> object:
    """The identity of a tensor of which a transform has wrapped each name by itself."""
    if torch.compiler.is_compiling():
        return id(x)
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    return identity(x)


def identity(x: Tensor) -> object:
    """What tells whether two are one tensor: a module's state dict has a tensor of its own for each name."""
    if torch.compiler.is_compiling():
        return id(x)
    try:
        place = x.data_ptr()
    except RuntimeError:  # inside a transform, or on no memory
        return id(x)
    return (place, x.dtype, x.shape, x.stride()) if place else id(x)


def planned(routes: Routes, src: Tensors, like: Tensors) -> Plan:
    """Complete a plan: which targets the results do not fit, which get nothing, and which sources go nowhere."""
    mismatched = dict(routes.mismatched)
    for name, route in routes.made.items():
        if name in like and name not in mismatched:
            shape = _shape(route, src)
            if shape != like[name].shape:
                mismatched[name] = f"source {tuple(shape)}, target {tuple(like[name].shape)}"
    used = {source for route in routes.made.values() for source in route.sources}
    said = {*routes.made, *routes.kept, *routes.ambiguous, *mismatched}
    return Plan(
        {name: Made(route.sources, route.how, route.why) for name, route in routes.made.items()},
        routes.kept,
        tuple(name for name in like if name not in said),
        mismatched,
        routes.ambiguous,
        {name: routes.unused.get(name, "") for name in src if name not in used},
    )


def _shape(route: Route, src: Tensors) -> torch.Size:
    tensors = [src[name] for name in route.sources]
    return tensors[0].shape if route.make is None else route.make(*map(on_meta, tensors)).shape


def all_on_meta(tensors: Tensors) -> Params:
    """Shapes and dtypes alone; what is one tensor stays one."""
    one = as_one(tensors)
    made = {id(x): on_meta(x) for x in one.values()}
    return {name: made[id(x)] for name, x in one.items()}


def on_meta(x: Tensor) -> Tensor:
    """A tensor's shape and dtype alone."""
    return torch.empty_like(x, device="meta")
