"""A weight map inside the step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import Reparam, WeightMap
from ttransfer.core._types import Params
from ttransfer.weights._pool import MARK, want_checkpoint
from ttransfer.weights._routes import Tensors, as_one, titled

__all__ = ["as_reparam"]


def as_reparam(map: WeightMap | Callable[..., WeightMap], src: Tensors, **numbers: Any) -> Reparam:
    """Compute a net's parameters from checkpoints inside the step, by a map whose numbers are learned or swept.

    The numbers are parameters of the net, under their keywords: they train if the net is named as trainable, else
    ``tt.sweep(step, {"net.alpha": [...]})`` and `tt.set_hyper` set the scalars. Of a mapping each number is one, as
    "scale.a" in ``tt.as_reparam(tt.weights.task_arithmetic, pool, scale={"a": 0.3, "b": 0.4})``.

    The checkpoints are held by the map itself, not by the state: they are there once however many members an ensemble
    has.

    Running statistics in the checkpoints go through the map as weights do, and the net reads them in eval mode:
    drop them (`tt.weights.drop`) for a net that is to gather its own.

    Args:
        map: a `WeightMap`, or a function that makes one from `numbers`, such as `tt.weights.wise_ft` or
            `tt.weights.average`.
        src: the map's source; a pool for one that merges.
        **numbers: keyword of `map` -> where it starts: a number, a sequence of numbers, a tensor, or a mapping name ->
            any of these; kept in float32 unless it is a tensor of another dtype. The map gets tensors. What else it
            takes is given before: ``functools.partial(tt.weights.ties, 0.2)``.

    Returns:
        A `Reparam` for `tt.reparam(net, ...)`.

    Raises:
        TransferError: for a map that is neither, numbers for a map that takes none, or such as the function does not
            take or cannot be learned; when applied, for parameters that the map does not give, or of another shape.

    Example:
        >>> import torch, ttransfer as tt
        >>> make = lambda: torch.nn.Linear(2, 2)
        >>> both = tt.weights.pool(a=make().state_dict(), b=make().state_dict())
        >>> merge = tt.as_reparam(tt.weights.average, both, weights=[0.5, 0.5])
        >>> net = tt.reparam(tt.functional(make()), merge)
        >>> sorted(set(net.layout.parameters) - net.layout.frozen)
        ['weights']
    """
    if isinstance(map, WeightMap):
        if numbers:
            raise TransferError(
                f"as_reparam: a map that is made already takes no numbers, got {sorted(numbers)[0]!r}; give the "
                "function that makes it"
            )
    elif not callable(cast(Any, map)):
        raise TransferError(f"as_reparam: wanted a WeightMap or a function that makes one, got {shown(map)}")
    want_checkpoint("as_reparam", src)
    start: Params = {}
    keys = {name: _keys(name, value) for name, value in numbers.items()}
    for name, value in numbers.items():
        each = keys[name]
        start.update({key: _number(key, value[k]) for k, key in each.items()} if each else {name: _number(name, value)})
    checkpoint = as_one(src)

    def made(values: Params) -> WeightMap:
        if isinstance(map, WeightMap):
            return map
        given = {name: {k: values[key] for k, key in each.items()} or values[name] for name, each in keys.items()}
        return map(**given)

    if not isinstance(map, WeightMap):
        _try(map, made, start, keys)

    def init(generator: torch.Generator, params: Params) -> Params:
        device = next(iter(params.values())).device if params else generator.device
        return {name: value.detach().clone().to(device) for name, value in start.items()}

    def apply(base: Params, delta: Params) -> Params:
        new = made(delta).apply(checkpoint, base)
        _check_covers(new, base)
        return {**new, **{name: new[name].to(base[name].dtype) for name in base}}

    return Reparam(init, apply)


def _keys(name: str, value: Any) -> dict[str, str]:
    """The names in the net of a mapping's numbers; none where it is no mapping."""
    if not isinstance(value, Mapping):
        return {}
    if not value:
        raise TransferError(f"as_reparam: {name!r} is a mapping of no numbers")
    return {k: f"{name}.{k}" for k in cast(Mapping[str, Any], value)}


def _try(map: Callable[..., Any], made: Callable[[Params], Any], start: Params, keys: Mapping[str, Any]) -> None:
    """Make the map once, so that what it refuses is refused here and not in a step."""
    try:
        inspect.signature(map).bind(**keys)
    except TypeError as error:  # for what it has no place for, or for what it wants beside
        raise TransferError(
            f"as_reparam: {titled(map)} cannot be called with {', '.join(keys) or 'no numbers'} alone: {error}; "
            f"it takes {', '.join(inspect.signature(map).parameters) or 'nothing'}"
        ) from error
    except ValueError:  # it has no signature, and is called as it is
        pass
    if not isinstance(found := made(start), WeightMap):
        raise TransferError(f"as_reparam: {titled(map)} makes no WeightMap, but {shown(found)}")


def _check_covers(new: Params, base: Params) -> None:
    if left := [name for name in base if name not in new]:
        if new and all(MARK in name for name in new):
            cure = "; it gives a whole pool, which a merging map such as tt.weights.average makes one checkpoint of"
        else:
            cure = (
                "; wanted all of them, under the net's names: tt.weights.rename gives other names, and at the end of "
            )
            cure += f"a chain tt.weights.match(allow=...) keeps the net's own{nearest(left[0], new)}"
        raise TransferError(
            f"as_reparam: the map makes nothing for {len(left)} of the net's {len(base)} parameters, the first "
            f"{left[0]!r}{cure}"
        )
    for name, x in base.items():
        if new[name].shape != x.shape:
            raise TransferError(f"as_reparam: {name!r} is {shown(x)} in the net, and the map makes {shown(new[name])}")


def _number(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.float()
    try:
        return torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TransferError(f"as_reparam: {name!r} must be a number, numbers or a tensor, got {value!r}") from error
