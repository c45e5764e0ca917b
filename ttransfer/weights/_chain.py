"""One map after another."""

from __future__ import annotations

from ttransfer.core._maps import Made, Plan, WeightMap
from ttransfer.core._types import Params
from ttransfer.weights._routes import Routes, Tensors, all_on_meta, planned, taken, want_map


def chain(*maps: WeightMap) -> WeightMap:
    """Apply maps in order: each gets the result of the one before, and all see the same target.

    Args:
        maps: any number; none is the identity.

    Returns:
        A `WeightMap`. Its plan goes from the last result to the first source, and says of targets that get
        nothing, or not what fits, what the last map says of them. It runs the maps before the last one on
        meta tensors, and so raises what they raise.

    Raises:
        TransferError: for what is no map, such as a function that was not called.

    Example:
        >>> import torch, ttransfer as tt
        >>> load = tt.weights.chain(tt.weights.rename({"head": "fc"}), tt.weights.match())
        >>> src, like = {"head.weight": torch.ones(2, 3)}, {"fc.weight": torch.zeros(2, 3)}
        >>> load.plan(src, like).made
        {'fc.weight': Made(sources=('head.weight',), how='', why='')}
        >>> load.apply(src, like)["fc.weight"].sum().item()
        6.0
    """
    for each in maps:
        want_map("chain", each)

    def apply(src: Tensors, like: Tensors) -> Params:
        result = dict(src)
        for each in maps:
            result = each.apply(result, like)
        return result

    def plan(src: Tensors, like: Tensors) -> Plan:
        here, target = all_on_meta(src), all_on_meta(like)
        dry = planned(Routes({name: taken(name) for name in src}), here, target)
        made, kept, lost = dry.made, set[str](), dict[str, str]()
        for i, each in enumerate(maps):
            if i:
                here = maps[i - 1].apply(here, target)
            dry = each.plan(here, target)
            for via, why in dry.unused.items():
                lost.update({name: why for name in made.get(via, Made(())).sources if name not in lost})
            # Made of what has no origin in the source, it has none either: a target's own tensor, handed on.
            own = {name for name, one in dry.made.items() if one.sources and not made.keys() & set(one.sources)}
            stays = {name for name in own if kept.issuperset(dry.made[name].sources)}
            made = {name: _since(one, made) for name, one in dry.made.items() if name not in own}
            kept = stays | set(dry.kept)
        used = {source for one in made.values() for source in one.sources}
        unused = {name: lost.get(name, "") for name in src if name not in used}
        said = {*made, *kept, *dry.mismatched, *dry.ambiguous}
        missing = tuple(name for name in like if name not in said)
        return dry._replace(
            made=made, kept=tuple(name for name in like if name in kept), missing=missing, unused=unused
        )

    return WeightMap(apply, plan)


def _since(one: Made, before: dict[str, Made]) -> Made:
    """What a tensor is made of, told from where the chain began."""
    steps = [before[via] for via in one.sources if via in before]
    sources = dict.fromkeys(source for step in steps for source in step.sources)
    return Made(
        tuple(sources), _told([step.how for step in steps], one.how), _told([step.why for step in steps], one.why)
    )


def _told(before: list[str], now: str) -> str:
    return "; ".join(dict.fromkeys(text for text in (*before, now) if text))
