"""Fill a target: by names, and what is left by order and by shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ttransfer.core._maps import WeightMap
from ttransfer.weights._contradictions import misnamed, swapped, torn
from ttransfer.weights._doubt import Crossing, crossings, in_doubt
from ttransfer.weights._order import Decided, by_order, disorder, kind
from ttransfer.weights._routes import Route, Routes, Tensors, routed
from ttransfer.weights._shapes import by_shape
from ttransfer.weights._strict import Allow, allowed, strictly

__all__ = ["match", "match_by_name", "match_by_order", "match_by_shape"]

Decide = Callable[[Tensors, Tensors, Mapping[str, str], Tensors, Tensors], Decided]
"""(src, like, what is made already, the sources and the targets that are left) -> what more is made."""


def match(*, allow: Allow = ()) -> WeightMap:
    """Fill every target tensor: by its name; what is left by the order of definition; what is left then by shape.

    A tensor of the same name and shape is taken. Of those that are left on either side, the two lists are laid side
    by side between the pairs that are made: a pair of one kind (the last part of the name, such as "running_mean")
    and one shape is taken if every best alignment has it. What is left then is taken where it is the only one of its
    kind and shape on both sides. Each decision stands in the plan.

    If a source lists a net's tensors as the net defines them, and the target has the same ones in the same order,
    then each target gets its own tensor or the map raises, unless names say otherwise: a tensor under the name of
    another is taken where nothing contradicts it. If its modules are defined in another order, what neither names nor
    shapes tell apart may go astray: `compare` the two nets. What speaks against an order is refused:

    - names left that stand in no order of definition: a sorted file, a module in two places, "blocks.1" before
      "blocks.0";
    - a pair by shape that crosses one by order, or the numbers in the names. If it is the only one of its shape in all
      it is taken, and what the order says of that part of the net is in doubt;
    - a module filled from two; siblings that get each other's names; and siblings of one shape of which one is named
      after another's source, as "k_proj" is after "key" and not after "query".

    Strict: a target that gets nothing, or could get more than one thing, is an error, and so is a source tensor that
    goes nowhere, unless `allow` names it. Inside a compiled step use `match_by_name` without `allow`: torch 2.8
    cannot trace regular expressions.

    Args:
        allow: regular expressions for whole names that may go without: targets that stay as they are (a new head),
            and sources that are left out (the old head). What they name is matched by name and shape only.

    Returns:
        A `WeightMap` whose result has the target's names in their order and the target's dtypes; tensors stay on the
        source's device.

    Raises:
        TransferError: at apply, for what is not accounted for, with the nearest names or the candidates; at plan and
            apply for an `allow` that matches no name.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"stem.weight": torch.ones(4), "fc.weight": torch.ones(1000, 4)}
        >>> like = {"conv1.weight": torch.zeros(4), "fc.weight": torch.zeros(10, 4)}
        >>> load = tt.weights.match(allow="fc.*")
        >>> print(tt.weights.show(load.plan(src, like)))
        conv1.weight  <- stem.weight     by order: 1 of 1
        fc.weight     -- stays as it is
        fc.weight     -> nowhere         allowed, (1000, 4) for a target of (10, 4)
        >>> new = load.apply(src, like)
        >>> new["conv1.weight"].sum().item(), new["fc.weight"].sum().item()
        (4.0, 0.0)
    """
    return _matching("match", allow, _by_name, _in_order, by_shape)


def match_by_name(*, allow: Allow = ()) -> WeightMap:
    """Fill every target tensor with the source tensor of its name and shape, and with nothing else.

    Args:
        allow: as for `match`.

    Returns:
        A `WeightMap` as `match` gives it.

    Raises:
        TransferError: as for `match`.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.weights.match_by_name().apply({"conv.weight": torch.ones(4)}, {"stem.weight": torch.zeros(4)})
        Traceback (most recent call last):
        ...
        ttransfer._errors.TransferError: match_by_name: 1 of 1 target tensors get nothing
          'stem.weight' (4,) float32: not in the source; did you mean 'conv.weight'?
        1 of 1 source tensors go nowhere
          'conv.weight' (4,) float32
        rename them, drop sources with tt.weights.drop, or let either be with allow=
    """
    return _matching("match_by_name", allow, _by_name)


def match_by_order(*, allow: Allow = ()) -> WeightMap:
    """Fill the targets in order, whatever the names: for a checkpoint that lists its tensors as the net defines them.

    It decides as the second part of `match` does, and takes the caller's word for it that both orders are those of
    definition: where one is not, tensors of one kind and shape go astray.

    Args:
        allow: as for `match`; what it names is left out of the two lists.

    Returns:
        A `WeightMap` as `match` gives it.

    Raises:
        TransferError: as for `match`.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"_conv.weight": torch.ones(4, 4), "_head.weight": torch.zeros(4, 4)}
        >>> like = {"stem.weight": torch.zeros(4, 4), "fc.weight": torch.zeros(4, 4)}
        >>> {name: one.sources for name, one in tt.weights.match_by_order().plan(src, like).made.items()}
        {'stem.weight': ('_conv.weight',), 'fc.weight': ('_head.weight',)}
    """
    return _matching("match_by_order", allow, by_order)


def match_by_shape(*, allow: Allow = ()) -> WeightMap:
    """Fill every target that is the only one of its kind and shape, from the only such source.

    Args:
        allow: as for `match`; what it names is not matched.

    Returns:
        A `WeightMap` as `match` gives it.

    Raises:
        TransferError: as for `match`.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"a.weight": torch.ones(4, 3), "b.weight": torch.ones(2, 4), "c.weight": torch.ones(2, 4)}
        >>> like = {"x.weight": torch.zeros(4, 3), "y.weight": torch.zeros(2, 4)}
        >>> tt.weights.match_by_shape().plan(src, like).ambiguous
        {'y.weight': ('b.weight', 'c.weight')}
    """
    return _matching("match_by_shape", allow, by_shape)


def _by_name(src: Tensors, like: Tensors, made: Mapping[str, str], here: Tensors, there: Tensors) -> Decided:
    return {name: (name, "") for name, x in like.items() if name in src and src[name].shape == x.shape}, {}


def _in_order(src: Tensors, like: Tensors, made: Mapping[str, str], here: Tensors, there: Tensors) -> Decided:
    # Names that were changed to the target's say nothing of where the others stand.
    return ({}, {}) if disorder(here) or disorder(there) else by_order(src, like, made, here, there)


class _Decided(NamedTuple):
    """What names, order and shape say.

    Attributes:
        made: target -> (source, why).
        ambiguous: target -> the sources that may be meant.
        by: target -> who decided.
    """

    made: dict[str, tuple[str, str]]
    ambiguous: dict[str, tuple[str, ...]]
    by: dict[str, Decide]

    def of(self, who: Decide) -> dict[str, str]:
        """target -> source, of one who decides."""
        return {target: self.made[target][0] for target, by in self.by.items() if by is who}

    def crossings(self, src: Tensors, like: Tensors) -> list[Crossing]:
        """The pairs by shape that speak against the order."""
        return crossings(self.of(_in_order), self.of(by_shape), src, like)


def _matching(whose: str, allow: Allow, *deciders: Decide) -> WeightMap:
    def routes(src: Tensors, like: Tensors) -> Routes:
        let = allowed(whose, allow, src, like)
        decided = _decide(src, like, let, deciders)
        doubtful = in_doubt(
            decided.crossings(src, like), decided.of(_in_order), decided.of(_by_name).values(), src, like
        )
        found = {name: one for name, one in decided.made.items() if name not in doubtful}
        ambiguous = {**decided.ambiguous, **doubtful}
        kept = tuple(name for name in like if name not in found and let(name))
        bent = {name: _misfit(src, like, name) for name in like if name in src and name not in found}
        if _by_name not in deciders:
            bent = {}
        why = {name: f"allowed, {bent[name]}" if name in bent else "allowed" for name in src if let(name)}
        return Routes(
            {name: _cast(src, like, name, *found[name]) for name in like if name in found},
            kept,
            {name: some for name, some in ambiguous.items() if name not in found},
            {name: f"source {told}" for name, told in bent.items() if name not in kept and name not in ambiguous},
            why,
        )

    hint = (lambda src, like: unread(src, like, allow)) if _in_order in deciders else None
    return routed(routes, strictly(whose, hint))


def _decide(src: Tensors, like: Tensors, let: Callable[[str], bool], deciders: tuple[Decide, ...]) -> _Decided:
    """Let one after another decide on what is left."""
    found: dict[str, tuple[str, str]] = {}
    ambiguous: dict[str, tuple[str, ...]] = {}
    by: dict[str, Decide] = {}
    named: tuple[str, ...] = ()
    for decide in deciders:
        made = {target: source for target, (source, _) in found.items()}
        used = set(made.values())
        here = {name: x for name, x in src.items() if name not in used and not let(name)}
        there = {name: x for name, x in like.items() if name not in found and not let(name)}
        both = (len(here) > 0 and len(there) > 0) or decide is _by_name
        more, ambiguous = decide(src, like, made, here, there) if both else ({}, {})
        found |= more
        by |= dict.fromkeys(more, decide)
        if decide is _by_name:
            named = tuple(found)
        if decide is _by_name or not more:
            continue
        made = {target: source for target, (source, _) in found.items()}
        # Whoever asks for the order alone answers for what the names say.
        near = misnamed(made, named, {t: kind(t, like) for t in made}) if _by_name in deciders else {}
        for target in dict.fromkeys((*torn(made, named), *swapped(made, named, src, like), *near)):
            source = found.pop(target)[0]
            del by[target]
            ambiguous[target] = near.get(target, (source,))
    return _Decided(found, ambiguous, by)


def unread(src: Tensors, like: Tensors, allow: Allow = ()) -> str:
    """Say why `match` reads no order, or doubts it; empty if it does neither."""
    decided = _decide(src, like, allowed("match", allow, src, like), (_by_name, _in_order, by_shape))
    named = list(decided.of(_by_name))
    for side, tensors in (("source", src), ("target", like)):
        if why := disorder({name: x for name, x in tensors.items() if name not in named}):
            return (
                f"no order was read, for in the {side} {why}; if it is that of definition all the same, use "
                "tt.weights.match_by_order"
            )
    rank = {name: i for i, name in enumerate(src)}
    # The two that stand the other way round in the source, as near to each other as there are.
    for first, then in itertools.pairwise(named):
        if rank[first] > rank[then]:
            return (
                f"no order was read, for the target has {first!r} before {then!r} and the source {then!r} before "
                f"{first!r}; rename the others too, or drop what crosses"
            )
    for one in decided.crossings(src, like)[:1]:
        shape, order = (f"{target!r} from {decided.made[target][0]!r}" for target in (one.shape, one.order))
        return (
            f"the order is in doubt, for {shape}, the only one of its shape, crosses {order}; rename one of "
            f"{f'{one.here}.*' if one.here else 'them'}, or more"
        )
    return ""


def _misfit(src: Tensors, like: Tensors, name: str) -> str:
    return f"{tuple(src[name].shape)} for a target of {tuple(like[name].shape)}"


def _cast(src: Tensors, like: Tensors, name: str, source: str, why: str) -> Route:
    here, there = src[source].dtype, like[name].dtype
    if here == there:
        return Route((source,), None, "", why)
    how = f"{str(here).removeprefix('torch.')} -> {str(there).removeprefix('torch.')}"
    return Route((source,), lambda x: x.to(there), how, why)
