"""A weight map inside the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import Reparam, WeightMap
from ttransfer.core._types import Params
from ttransfer.weights._routes import Tensors

__all__ = ["as_reparam"]


def as_reparam(map: WeightMap | Callable[..., WeightMap], src: Tensors, **numbers: Any) -> Reparam:
    """Compute a net's parameters from checkpoints inside the step, by a map whose numbers are learned or swept.

    The numbers are parameters of the net, under their keywords: they train if the net is named as trainable, else
    ``tt.sweep(step, {"net.alpha": [...]})`` and `tt.set_hyper` set the scalars. The checkpoints are held by the map
    itself, not by the state: they are there once however many members an ensemble has.

    Running statistics in the checkpoints go through the map as weights do, and the net reads them in eval mode:
    drop them (`tt.weights.drop`) for a net that is to gather its own.

    Args:
        map: a `WeightMap`, or a function that makes one from `numbers`, such as `tt.weights.wise_ft` or
            `tt.weights.average`.
        src: the map's source; a pool for one that merges.
        **numbers: keyword of `map` -> where it starts: a number, a sequence of numbers or a tensor; kept in float32
            unless it is a tensor of another dtype.

    Returns:
        A `Reparam` for `tt.reparam(net, ...)`.

    Raises:
        TransferError: for a map that is neither, or numbers for a map that takes none; when applied, for parameters
            that the map does not give.

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
    start = {name: _number(name, value) for name, value in numbers.items()}
    checkpoint = dict(src)

    def init(generator: torch.Generator, params: Params) -> Params:
        device = next(iter(params.values())).device if params else generator.device
        return {name: value.detach().clone().to(device) for name, value in start.items()}

    def apply(base: Params, delta: Params) -> Params:
        made = map if isinstance(map, WeightMap) else map(**{name: delta[name] for name in start})
        new = made.apply(checkpoint, base)
        if left := [name for name in base if name not in new]:
            raise TransferError(
                f"as_reparam: the map gives {len(left)} of {len(base)} parameters nothing, the first {left[0]!r}"
            )
        return {**new, **{name: new[name].to(base[name].dtype) for name in base}}

    return Reparam(init, apply)


def _number(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.float()
    try:
        return torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TransferError(f"as_reparam: {name!r} must be a number, numbers or a tensor, got {value!r}") from error
