"""Maps with parameters, or between parameters: Adapter, Reparam, WeightMap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttransfer.core._types import Params

__all__ = ["NOTHING", "Adapter", "Made", "Plan", "Reparam", "WeightMap"]


class Adapter(NamedTuple):
    """A feature -> feature map with parameters.

    Attributes:
        init: (generator, like) -> Params; `like` is a meta tensor of the feature's shape and dtype.
        apply: (params, feature) -> feature.

    Example:
        >>> scale = Adapter(lambda g, like: {"s": torch.ones_like(like[0], device="cpu")}, lambda p, x: p["s"] * x)
        >>> scale.apply(scale.init(torch.Generator(), torch.empty(4, 2, device="meta")), torch.ones(1, 2))
        tensor([[1., 1.]])
    """

    init: Callable[[torch.Generator, Tensor], Params]
    apply: Callable[[Params, Tensor], Tensor]


class Reparam(NamedTuple):
    """A parameters -> parameters map inside the step (LoRA, masks, fake quantisation).

    Attributes:
        init: (generator, params) -> delta, the map's own parameters; names must not clash with the base's.
        apply: (base, delta) -> params, under the base's names.
        trains_base: whether the base parameters train too when the net is named as trainable.

    Example:
        >>> shift = Reparam(lambda g, p: {"by": torch.zeros(())}, lambda p, d: {k: v + d["by"] for k, v in p.items()})
        >>> shift.apply({"w": torch.ones(2)}, {"by": torch.tensor(2.0)})
        {'w': tensor([3., 3.])}
    """

    init: Callable[[torch.Generator, Params], Params]
    apply: Callable[[Params, Params], Params]
    trains_base: bool = False


NOTHING: Mapping[str, Any] = {}
"""What a plan says where there is nothing to say. Nobody writes to it."""


class Made(NamedTuple):
    """Where one tensor comes from.

    Attributes:
        sources: names of the source tensors that it is made of; none for one that is made anew.
        how: what is done to them, such as "input channels 3 -> 1, summed"; empty for a tensor taken as it is.
        why: what decided on these sources, where it was not their names.

    Example:
        >>> Made(("conv.weight", "bn.weight"), "folded").how
        'folded'
    """

    sources: tuple[str, ...]
    how: str = ""
    why: str = ""


class Plan(NamedTuple):
    """The dry run of a WeightMap: every tensor of the source and of the target is accounted for.

    Attributes:
        made: result name -> what it is made of, and how.
        kept: targets that stay as they are, because the map was told that they may.
        missing: targets that get nothing.
        mismatched: target -> why what is for it does not fit.
        ambiguous: target -> the sources that may be meant, more than one.
        unused: source -> why it goes nowhere; empty where nothing asks for it.

    Example:
        >>> Plan({"fc.weight": Made(("head.weight",))}, missing=("fc.bias",)).missing
        ('fc.bias',)
    """

    made: dict[str, Made]
    kept: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    mismatched: Mapping[str, str] = NOTHING
    ambiguous: Mapping[str, tuple[str, ...]] = NOTHING
    unused: Mapping[str, str] = NOTHING


class WeightMap(NamedTuple):
    """A checkpoint -> parameters map, pure and differentiable.

    Attributes:
        apply: (src, like) -> Params.
        plan: (src, like) -> Plan, on names and shapes alone.

    Example:
        >>> import ttransfer as tt
        >>> list(tt.weights.rename({"head": "fc"}).apply({"head.weight": torch.ones(2)}, {}))
        ['fc.weight']
    """

    apply: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Params]
    plan: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Plan]
