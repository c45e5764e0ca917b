"""To each part of a net its own map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from ttransfer._errors import TransferError
from ttransfer.core._maps import Made, Plan, WeightMap
from ttransfer.core._tree import matches
from ttransfer.core._types import Params
from ttransfer.weights._parts import Part, Share, bare_names, shared_out, tied
from ttransfer.weights._routes import Tensors, identity, want_map

__all__ = ["by_part", "divided"]

T = TypeVar("T")


def by_part(parts: Mapping[str, WeightMap]) -> WeightMap:
    """Let each tensor go through the map of the first pattern that fits its name.

    Each map sees the source and target tensors of its part alone, and so counts, matches and merges among them. It may
    be any map: one that merges gets that part of every checkpoint in the pool. For a number that differs from layer to
    layer there is `tt.weights.by_layer`.

    Two names of one tensor (tied weights) belong in one part. A name that no pattern fits goes with the one that it is
    tied to.

    Args:
        parts: regular expression for whole names -> the map for what it fits, and no earlier one does. For a source of
            which every name has a slash, a pool, it is what follows the first one that is compared. A last ".*" is
            for the rest, which may be nothing.

    Returns:
        A `WeightMap`. Its results have the target's order, if all are in the target, else that of the source.

    Raises:
        TransferError: for no parts, or what is no map; at use, for a source tensor that no pattern fits, a pattern that
            gets nothing, a tensor that two parts make or that is the target of another part, tied weights that two
            parts make two of, and for what a map raises, with its pattern.

    Example:
        >>> import torch, ttransfer as tt
        >>> nets = [{name: torch.full((1,), x) for name in ("stem.w", "body.w", "head.w")} for x in (0.0, 1.0)]
        >>> pool = tt.weights.pool(base=nets[0], tuned=nets[1])
        >>> near, far = tt.weights.wise_ft(0.1), tt.weights.wise_ft(0.9)
        >>> merged = tt.weights.by_part({r"stem\\..*": near, ".*": far}).apply(pool, {})
        >>> {name: round(x.item(), 1) for name, x in merged.items()}
        {'stem.w': 0.1, 'body.w': 0.9, 'head.w': 0.9}
    """
    if not isinstance(parts, Mapping):
        raise TransferError(f"by_part: wanted a mapping, pattern -> map, got {type(parts).__name__}")
    return divided("by_part", [Part(pattern, pattern, map) for pattern, map in parts.items()])


def divided(whose: str, parts: Sequence[Part]) -> WeightMap:
    """Make one map of many, each for its part.

    Raises:
        TransferError: as `by_part` does.
    """
    if not parts:
        raise TransferError(f"{whose}: no parts")
    for part in parts:
        want_map(f"{whose}: {part.title!r}", part.map)
        if isinstance(part.fits, str) and not torch.compiler.is_compiling():
            matches(part.fits, "")  # which says so if it is no expression

    def apply(src: Tensors, like: Tensors) -> Params:
        bare = bare_names(src)
        twins = tied(src, bare)
        shares = shared_out(whose, parts, src, like, bare, twins)
        every: list[Params] = []
        for share in shares:
            new = _asked(whose, share.part, share.part.map.apply, share)
            _check_own(whose, share, new, every, like)
            every.append(new)
        result = _in_order(every, shares, src, like, bare)
        _check_whole(whose, twins, shares, bare, result, lambda x, y: x is y or identity(x) == identity(y))
        return result

    def plan(src: Tensors, like: Tensors) -> Plan:
        bare = bare_names(src)
        twins = tied(src, bare)
        shares = shared_out(whose, parts, src, like, bare, twins)
        every: list[dict[str, Made]] = []
        dry: list[Plan] = []
        for share in shares:
            dry.append(_asked(whose, share.part, share.part.map.plan, share))
            new = {name: _told(share.part, one) for name, one in dry[-1].made.items()}
            _check_own(whose, share, new, every, like)
            every.append(new)
        made = _in_order(every, shares, src, like, bare)
        _check_whole(whose, twins, shares, bare, made, lambda x, y: not x.how and not y.how)
        kept = {name for one in dry for name in one.kept}
        bent = {name: why for one in dry for name, why in one.mismatched.items()}
        doubt = {name: some for one in dry for name, some in one.ambiguous.items()}
        unused = {name: why for one in dry for name, why in one.unused.items()}
        said = {*made, *kept, *bent, *doubt}
        return Plan(
            made,
            tuple(name for name in like if name in kept),
            tuple(name for name in like if name not in said),
            bent,
            doubt,
            {name: unused[name] for name in src if name in unused},
        )

    return WeightMap(apply, plan)


def _asked(whose: str, part: Part, question: Callable[[Tensors, Tensors], T], share: Share) -> T:
    try:
        return question(share.src, share.like)
    except TransferError as error:
        raise TransferError(f"{whose}: {part.title!r}: {error}") from error


def _told(part: Part, one: Made) -> Made:
    return one._replace(how=f"{part.title}: {one.how}") if one.how else one


def _check_own(
    whose: str, share: Share, made: Mapping[str, object], before: Sequence[Mapping[str, object]], like: Tensors
) -> None:
    for name in made:
        if any(name in others for others in before):
            raise TransferError(f"{whose}: {share.part.title!r} makes {name!r}, and so does a part before it")
        if name in like and name not in share.like:
            raise TransferError(
                f"{whose}: {share.part.title!r} makes {name!r}, a target that is not in this part; let it fit both"
            )


def _check_whole(
    whose: str,
    twins: Sequence[Sequence[str]],
    shares: Sequence[Share],
    bare: Mapping[str, str],
    new: Mapping[str, T],
    same: Callable[[T, T], bool],
) -> None:
    """Refuse to make two of one tensor."""
    if not twins:
        return
    home = {bare[name]: share.part for share in shares for name in share.src}
    members = dict.fromkeys(("", *(name.removesuffix(bare[name]) for name in bare)))
    for group in twins:
        for member in members:
            first, *others = [name for name in group if member + name in new] or [""]
            for other in others:
                if home[other] is not home[first] and not same(new[member + first], new[member + other]):
                    raise TransferError(
                        f"{whose}: {first!r} and {other!r} are one tensor, of which {home[first].title!r} and "
                        f"{home[other].title!r} make two; let one part have both"
                    )


def _in_order(
    every: Sequence[Mapping[str, T]], shares: Sequence[Share], src: Tensors, like: Tensors, bare: Mapping[str, str]
) -> dict[str, T]:
    """Put what the parts make in the order of the target or of the source."""
    new = {name: x for made in every for name, x in made.items()}
    if len(every) == 1:
        return new
    if all(name in like for name in new):
        return {name: new[name] for name in like if name in new}
    rank: dict[str, int] = {}
    for i, name in enumerate(src):
        rank[name] = i
        rank.setdefault(bare[name], i)
    place: dict[str, int] = {}
    for made, share in zip(every, shares, strict=True):
        at = rank[next(iter(share.src))] if share.src else len(src)
        for name in made:
            at = place[name] = rank.get(name, at)  # one of a new name stays behind the one before it
    return {name: new[name] for name in sorted(new, key=place.__getitem__)}
