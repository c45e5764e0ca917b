"""The optimizer's state spread over the ranks (ZeRO-1).

Every leaf of what trains has an owner, who alone keeps the optimizer's state for it and moves it; the others then take
it from him. Where a rank is not the owner it holds a leaf of one element in its place, so that the optimizer sees all
names on every rank. For an optimizer that looks at the norm of all gradients together, that element is the norm of the
gradient that it stands for: the norm of all is then right on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree
from ttransfer.core._spec import Expression
from ttransfer.core._types import Optimizer, State, Tree
from ttransfer.core._update import moved
from ttransfer.dist._channel import channel
from ttransfer.dist._exchange import summed
from ttransfer.dist._ops import all_gather, by_dtype, reduce_scatter
from ttransfer.dist._ranks import Ranks

__all__ = ["Spread", "keep", "owners_of", "spread", "whole"]

_PLACE = (1,) * 9  # the shape of a leaf that stands for another: no parameter has it


def owners_of(trainable: Tree, size: int) -> list[int]:
    """Give each leaf an owner, so that all ranks own about as many numbers: the largest first, to who has least."""
    numbers = [math.prod(x.shape) for x in tree.leaves(trainable)]
    load = [0] * size
    owners = [0] * len(numbers)
    for i in sorted(range(len(numbers)), key=lambda i: (-numbers[i], i)):
        owners[i] = load.index(min(load))
        load[owners[i]] += numbers[i]
    return owners


def keep(rank: int, owners: Sequence[int], trainable: Tree, places: Sequence[Tensor] | None = None) -> Tree:
    """Leave a rank its own leaves; the others are stood for by one element, 0 unless given."""
    leaves: list[Tensor] = tree.leaves(trainable)
    kept = [
        x if owner == rank else (x.new_zeros(_PLACE) if places is None else places[i].to(x.dtype).reshape(_PLACE))
        for i, (x, owner) in enumerate(zip(leaves, owners, strict=True))
    ]
    return tree.unflatten(trainable, kept)


class Spread:
    """How the leaves of one optimizer are spread; made when the state is known."""

    def __init__(self, ranks: Ranks, expression: Expression, trainable: Tree, numbers: Mapping[str, Tensor]) -> None:
        self.owners = owners_of(trainable, ranks.size)
        self.norms = _by_norms(expression, trainable, numbers)


def spread(
    ranks: Ranks,
    expression: Expression,
    how: Spread,
    state: State,
    grads: Tree,
    numbers: Mapping[str, Tensor],
    others: list[Tensor],
) -> tuple[Tree, Tree, list[Tensor]]:
    """Make the step that the sum of all ranks' gradients asks for, each rank for its own leaves.

    Returns:
        What trains, the optimizer's state, and the sums of `others`.
    """
    owned = _scattered(ranks, how.owners, tree.leaves(grads))
    extra: list[Tensor] = []
    if how.norms:
        zero = state.step.new_zeros((), dtype=torch.float64)
        squares = [
            g.to(torch.float64).square().sum() if owner == ranks.rank else zero
            for g, owner in zip(owned, how.owners, strict=True)
        ]
        extra = [torch.stack(squares)]
    *sums, norms = summed(ranks, [*others, *extra]) if how.norms else [*summed(ranks, others), None]
    places = None if norms is None else list(norms.sqrt().unbind())
    mine = keep(ranks.rank, how.owners, tree.unflatten(grads, owned), places)
    trainable, opt = moved(expression, keep(ranks.rank, how.owners, state.trainable), state.opt, mine, numbers)
    leaves = _collected(ranks, how.owners, tree.leaves(trainable), tree.leaves(state.trainable))
    return tree.unflatten(state.trainable, leaves), opt, sums


def _segments(
    size: int, owners: Sequence[int], places: Sequence[int], leaves: Sequence[Tensor]
) -> tuple[list[list[int]], int]:
    """The leaves of each owner, and the length that holds any owner's."""
    each = [[i for i in places if owners[i] == rank] for rank in range(size)]
    return each, max(sum(leaves[i].numel() for i in own) for own in each)


def _flat(own: Sequence[Tensor], length: int, like: Tensor) -> Tensor:
    """Put tensors end to end, filled up to a length."""
    rest = length - sum(x.numel() for x in own)
    return torch.cat([*(x.reshape(-1) for x in own), like.new_zeros(rest)])


def _scattered(ranks: Ranks, owners: Sequence[int], leaves: list[Tensor]) -> list[Tensor]:
    """Sum the leaves over the ranks; each rank gets its own, and keeps what it had of the others'."""
    out = list(leaves)
    for places in by_dtype(leaves).values():
        each, length = _segments(ranks.size, owners, places, leaves)
        like = leaves[places[0]]
        whole = torch.cat([_flat([leaves[i] for i in own], length, like) for own in each])
        part = reduce_scatter(whole, ranks.size, ranks.group)
        _fill(out, each[ranks.rank], part, leaves)
    return out


def _collected(ranks: Ranks, owners: Sequence[int], leaves: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """Take every leaf from its owner."""
    out = list(like)
    for places in by_dtype(like).values():
        each, length = _segments(ranks.size, owners, places, like)
        own = _flat([leaves[i] for i in each[ranks.rank]], length, like[places[0]])
        for taken, part in zip(each, all_gather(own, ranks.size, ranks.group).split(length), strict=True):
            _fill(out, taken, part, like)
    return out


def _fill(out: list[Tensor], places: Sequence[int], flat: Tensor, like: Sequence[Tensor]) -> None:
    sizes = [like[i].numel() for i in places]
    *parts, _ = flat.split([*sizes, flat.numel() - sum(sizes)])
    for i, part in zip(places, parts, strict=True):
        out[i] = part.reshape(like[i].shape)


def _by_norms(expression: Expression, trainable: Tree, numbers: Mapping[str, Tensor]) -> bool:
    """Try whether an optimizer moves each leaf by itself (False), or by the norms of the others too (True)."""
    generator = torch.Generator().manual_seed(0)
    leaves: list[Tensor] = tree.leaves(trainable)

    def small(scale: float) -> Tree:
        drawn = [scale * torch.randn((2,) * x.ndim, generator=generator, dtype=torch.float64) for x in leaves]
        return tree.unflatten(trainable, drawn)

    params, gradients = small(1.0), [small(10.0), small(0.1)]
    numbers = {name: value.detach().to("cpu", torch.float64) for name, value in numbers.items()}
    owners = [i % 2 for i in range(len(leaves))]
    wanted = _two_steps(expression, params, gradients, numbers)
    for norms in (False, True):
        try:
            got = _in_parts(expression, params, gradients, numbers, owners, norms)
        except Exception:  # a state that cannot be kept in parts
            continue
        if all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(got, wanted, strict=True)):
            return norms
    raise TransferError(
        "shard: optimizer='sharded' keeps the optimizer's state for some parameters on each rank, and this optimizer "
        "moves a parameter by more of the others' gradients than their norms; use optimizer='replicated'"
    )


def _two_steps(
    expression: Expression, params: Tree, gradients: Sequence[Tree], numbers: Mapping[str, Tensor]
) -> list[Tensor]:
    opt = expression.optimizer.init(params)
    for grads in gradients:
        params, opt = moved(expression, params, opt, grads, numbers)
    return tree.leaves(params)


def _in_parts(
    expression: Expression,
    params: Tree,
    gradients: Sequence[Tree],
    numbers: Mapping[str, Tensor],
    owners: Sequence[int],
    norms: bool,
) -> list[Tensor]:
    found: list[Any] = [None] * len(owners)
    for rank in range(2):
        places = [[g.norm() for g in tree.leaves(grads)] for grads in gradients] if norms else [None, None]
        mine = [keep(rank, owners, grads, place) for grads, place in zip(gradients, places, strict=True)]
        for i, x in enumerate(_two_steps(expression, keep(rank, owners, params), mine, numbers)):
            found[i] = x if owners[i] == rank else found[i]
    return found


def _leaf_of(optimizer: Optimizer, trainable: Tree) -> list[int | None]:
    """For each leaf of an optimizer's state, the leaf of what trains that it belongs to; None for one of all."""
    leaves: list[Tensor] = tree.leaves(trainable)
    # On no device, for the marks are large.
    marked = [x.new_zeros((i + 2,) * len(_PLACE), device="meta") for i, x in enumerate(leaves)]
    told: list[Tensor] = tree.leaves(optimizer.init(tree.unflatten(trainable, marked)))
    alike = [x.new_zeros(_PLACE, device="meta") for x in leaves]
    plain: list[Tensor] = tree.leaves(optimizer.init(tree.unflatten(trainable, alike)))
    found: list[int | None] = []
    for a, b in zip(told, plain, strict=True):
        if a.shape == b.shape:
            found.append(None)
        elif a.ndim == len(_PLACE):
            found.append(a.shape[0] - 2)
        else:
            raise TransferError(
                "shard: optimizer='sharded' wants a state of the shapes of the parameters, and this optimizer's has "
                "others; use optimizer='replicated'"
            )
    return found


def whole(ranks: Ranks, optimizer: Optimizer, trainable: Tree, opt: Tree) -> Tree:
    """Put the optimizer's state together on every rank.

    Args:
        ranks: who takes part.
        optimizer: whose state.
        trainable: what it trains; stacked as the state is.
        opt: this rank's part.
    """
    owners, leaves = owners_of(trainable, ranks.size), tree.leaves(trainable)
    found: list[Tensor] = []
    for x, i in zip(tree.leaves(opt), _leaf_of(optimizer, trainable), strict=True):
        if i is not None:
            x = x.clone() if owners[i] == ranks.rank else x.new_empty(leaves[i].shape)
            channel(ranks.group).broadcast(x, owners[i])
        found.append(x)
    return tree.unflatten(opt, found)


def part(ranks: Ranks, optimizer: Optimizer, trainable: Tree, opt: Tree, members: torch.Size) -> Tree:
    """Undo `whole`: keep this rank's leaves of the optimizer's state.

    Args:
        ranks: who takes part.
        optimizer: whose state.
        trainable: what it trains; stacked as the state is.
        opt: the whole state.
        members: how it is stacked.
    """
    owners = owners_of(trainable, ranks.size)
    found = [
        x if i is None or owners[i] == ranks.rank else x.new_zeros((*members, *_PLACE))
        for x, i in zip(tree.leaves(opt), _leaf_of(optimizer, trainable), strict=True)
    ]
    return tree.unflatten(opt, found)
