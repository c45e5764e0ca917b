"""One map after another."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ttransfer.core._maps import Plan, WeightMap
from ttransfer.core._types import Params
from ttransfer.weights._plan import planned


def chain(*maps: WeightMap) -> WeightMap:
    """Apply maps in order: each gets the result of the one before, and all see the same target.

    Args:
        maps: any number; none is the identity.

    Returns:
        A `WeightMap`. Its plan goes from the last result to the first source, and says of missing and
        mismatched targets what the last map says of them. It runs the maps before the last one on meta
        tensors, and so raises what they raise.

    Example:
        >>> import torch, ttransfer as tt
        >>> load = tt.weights.chain(tt.weights.rename({"head": "fc"}), tt.weights.match())
        >>> src, like = {"head.weight": torch.ones(2, 3)}, {"fc.weight": torch.zeros(2, 3)}
        >>> load.plan(src, like).copied
        {'fc.weight': 'head.weight'}
        >>> load.apply(src, like)["fc.weight"].sum().item()
        6.0
    """

    def apply(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Params:
        result = dict(src)
        for each in maps:
            result = each.apply(result, like)
        return result

    def plan(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Plan:
        here, target = _meta(src), _meta(like)
        dry = planned({name: name for name in src}, here, target)
        origin = dry.copied
        for i, each in enumerate(maps):
            if i:
                here = maps[i - 1].apply(here, target)
            dry = each.plan(here, target)
            origin = {name: origin[via] for name, via in dry.copied.items() if via in origin}
        used = set(origin.values())
        unused = tuple(name for name in src if name not in used)
        # A target that only an earlier target could fill has no source either.
        missing = tuple(name for name in like if name not in origin and name not in dry.mismatched)
        return Plan(origin, unused, missing, dry.mismatched)

    return WeightMap(apply, plan)


def _meta(tensors: Mapping[str, Tensor]) -> Params:
    return {name: tensor.to("meta") for name, tensor in tensors.items()}
