"""What the terms read on a rank: rows of its own before the exchange, rows of all ranks after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from ttransfer.core import _tree as tree
from ttransfer.core._forward import Bound, Clock, Outs, domain_of, raw_readings, reading
from ttransfer.core._pipes import run_stages
from ttransfer.core._reads import flat
from ttransfer.core._score import numbers_of
from ttransfer.core._types import Batch, Params, State
from ttransfer.core._update import params_of
from ttransfer.dist._layout import Form, Layout, of_rows
from ttransfer.dist._ranks import Ranks, Rows

__all__ = ["Leaves", "Piece", "by_kind", "counted_once", "local_readings", "loss_readings", "together_again"]

Leaves = Mapping[str, list[Tensor]]
"""term -> the tensors among its readings of rows, in the order of its form."""


class Piece(NamedTuple):
    """A micro-batch of this rank.

    Attributes:
        batch: its rows.
        clock: where they stand among all rows.
        rows: what is known of each domain's rows.
        counts: mean term -> its items, where the number of rows does not tell them.
        shares: mean term -> its part of all items, where known before the message.
    """

    batch: Batch
    clock: Clock
    rows: Mapping[str, Rows]
    counts: Mapping[str, Tensor]
    shares: Mapping[str, Tensor]


def by_kind(cut: Layout, found: Leaves) -> tuple[list[Tensor], list[Tensor]]:
    """Tell the floating tensors of all terms from the others: only they have a gradient."""
    pairs = [pair for name, form in cut.forms.items() for pair in zip(_tensors(form), found[name], strict=True)]
    return [x for floats, x in pairs if floats], [x for floats, x in pairs if not floats]


def together_again(cut: Layout, floats: list[Tensor], others: list[Tensor]) -> Leaves:
    """Undo `by_kind`."""
    one, two = iter(floats), iter(others)
    return {name: [next(one if is_float else two) for is_float in _tensors(form)] for name, form in cut.forms.items()}


def _tensors(form: Form) -> list[bool]:
    return [leaf for leaf in form.leaves if isinstance(leaf, bool)]


def local_readings(
    bound: Bound,
    cut: Layout,
    outs: Outs,
    trainable: Mapping[str, Any],
    buffers: Mapping[str, Params],
    piece: Piece,
    numbers: Mapping[str, Tensor],
    state: State,
) -> Leaves:
    """What the terms read of this rank's rows, up to the cut."""
    found: Leaves = {}
    params = params_of(state, trainable)
    for name, term in bound.expression.terms.items():
        raw = raw_readings(bound, term, outs, params, buffers, piece.batch, piece.clock)
        hyper = numbers_of(name, numbers, raw)
        values = [
            run_stages(read, i, trainable["terms"].get(name, {}), hyper, value, range(cut.cuts[name][i]))
            if of_rows(read) else None
            for i, (read, value) in enumerate(zip(flat(term.reads), raw, strict=True))
        ]  # fmt: skip
        found[name] = [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor)]
    return found


def counted_once(cut: Layout, ranks: Ranks, name: str, p: Tensor) -> Tensor:
    """What every rank uses whole in a gathered term: their gradients will be summed, and must count once."""
    return p.detach() + (p - p.detach()) / ranks.size if name in cut.gathered else p


def loss_readings(
    bound: Bound,
    cut: Layout,
    ranks: Ranks,
    seen: Leaves,
    owned: Mapping[str, Params],
    direct: Mapping[str, Any],
    buffers: Mapping[str, Params],
    piece: Piece,
    numbers: Mapping[str, Tensor],
    state: State,
) -> dict[str, list[Any]]:
    """What the losses read: rows after the cut, and what is no matter of rows."""
    found: dict[str, list[Any]] = {}
    for name, term in bound.expression.terms.items():
        trainable = {
            net: tree.map(lambda p, name=name: counted_once(cut, ranks, name, p), own)
            for net, own in direct.items()
            if net != "terms"
        }
        params = params_of(state, {**state.trainable, **trainable})
        form = cut.forms[name]
        tensors = iter(seen[name])
        leaves = [next(tensors) if isinstance(leaf, bool) else leaf for leaf in form.leaves]
        begin = 0 if name in cut.gathered else piece.clock.start.get(domain_of(term), 0)
        values = [
            value if of_rows(read) else reading(bound, read.path, {}, params, buffers, piece.batch, piece.clock, begin)
            for read, value in zip(flat(term.reads), pytree.tree_unflatten(leaves, form.spec), strict=True)
        ]
        hyper = numbers_of(name, numbers, values)
        found[name] = [
            run_stages(read, i, owned.get(name, {}), hyper, value, range(begun, len(read.pipes)))
            for i, (read, value, begun) in enumerate(zip(flat(term.reads), values, cut.cuts[name], strict=True))
        ]  # fmt: skip
    return found
