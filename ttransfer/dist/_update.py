"""The sharded update: each rank runs the nets on its rows, and the whole equals one process that has them all.

The update of `core` is cut between pipes and losses. The derivative of the first part is pulled back on each rank for
its own rows; the losses are taken outside of it, of the rows of all ranks where a term couples them. So every exchange
stands outside of every differentiation, and none is needed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ttransfer.core import _tree as tree
from ttransfer.core._forward import Bound, Clock, check_batch, domain_of, rows_of, run_passes
from ttransfer.core._guard import finite, guarded
from ttransfer.core._hyper import resolve
from ttransfer.core._score import Scored, score, total_of, weigh
from ttransfer.core._spec import declared, slot
from ttransfer.core._states import state_check
from ttransfer.core._transforms import SHARDS, TOTALS
from ttransfer.core._types import Batch, Logs, Params, State, Tree
from ttransfer.core._update import advanced, count_of, params_of, split
from ttransfer.dist._exchange import own_rows, together
from ttransfer.dist._layout import Layout, counted
from ttransfer.dist._ranks import Ranks, Rows, rows_of_domains
from ttransfer.dist._readings import Piece, by_kind, counted_once, local_readings, loss_readings, together_again

__all__ = ["build_sharded"]

Moved = Callable[[State, Tree, Mapping[str, Tensor], list[Tensor]], tuple[Tree, Tree, list[Tensor]]]
"""(state, this rank's gradients, numbers, other tensors) -> what trains and the optimizer's state after the update by
the sum of all ranks' gradients, and the sums of the other tensors."""


def build_sharded(
    bound: Bound, ranks: Ranks, layout: Callable[[], Layout], moved: Moved
) -> Callable[[State, Batch], tuple[State, Logs]]:
    """Return the sharded update of an expression, for batches that are prepared.

    Args:
        bound: the expression on its skeletons.
        ranks: who takes part.
        layout: gives how the terms are split, once that is known.
        moved: makes the step that the gradients ask for.
    """
    expression, plan = bound.expression, bound.plan
    moving = [one for one in plan.passes if one.net in plan.learned]
    still = [one for one in plan.passes if one.net not in plan.learned]
    numbers_wanted = declared(expression)
    check_state = state_check({"": (expression, plan)})

    def gradient(
        state: State,
        numbers: Mapping[str, Tensor],
        buffers: Mapping[str, Params],
        memory: Mapping[str, Tree],
        piece: Piece,
        prepared: Batch,
    ) -> tuple[Tree, Scored, dict[str, Params]]:
        cut = layout()
        known, buffers = run_passes(bound, still, params_of(state, state.trainable), buffers, piece.batch, piece.clock)

        def local(trainable: dict[str, Any]) -> tuple[list[Tensor], tuple[list[Tensor], dict[str, Params]]]:
            outs, after = run_passes(bound, moving, params_of(state, trainable), buffers, piece.batch, piece.clock)
            found = local_readings(bound, cut, {**known, **outs}, trainable, after, piece, numbers, state)
            floats, others = by_kind(cut, found)
            # Terms of parameters alone read no rows, and there is no derivative of nothing.
            return floats or [state.step.new_zeros((), dtype=torch.float32)], (others, after)

        floats, pull, (others, after) = cast(Any, torch.func.vjp(local, state.trainable, has_aux=True))
        here = together_again(cut, floats, others)
        seen, totals = together(ranks, expression, cut, prepared, piece.rows, here, piece.counts)
        shares = {**piece.shares, **{name: piece.counts[name] / totals[name] for name in totals}}
        inputs, rest = by_kind(cut, seen)

        def losses(direct: dict[str, Any], inputs: list[Tensor]) -> tuple[Tensor, Scored]:
            owned = {
                name: tree.map(lambda p, name=name: counted_once(cut, ranks, name, p), own)
                for name, own in direct["terms"].items()
            }
            readings = loss_readings(
                bound, cut, ranks, together_again(cut, inputs, rest), owned, direct, after, piece, numbers, state
            )
            scored = score(expression, owned, memory, numbers, state.step, readings, shares)
            return scored.total, scored

        direct = {key: state.trainable[key] for key in ("terms", *sorted(cut.direct))}
        (grads, pulled), scored = torch.func.grad(losses, argnums=(0, 1), has_aux=True)(direct, inputs)
        mine = own_rows(expression, cut, piece.rows, here, together_again(cut, pulled, rest))
        (through,) = pull(by_kind(cut, mine)[0] or [torch.zeros_like(x) for x in floats])
        return {**through, **{key: tree.map(torch.add, through[key], grads[key]) for key in direct}}, scored, after

    def update(state: State, batch: Batch) -> tuple[State, Logs]:
        prepared = {key: batch[key] for key in (SHARDS, TOTALS)}
        batch = {key: fields for key, fields in batch.items() if key not in prepared}
        if not torch.compiler.is_compiling():
            check_state(state, 0)
            batch = check_batch(plan, batch)
        numbers = resolve(numbers_wanted, state.hyper, state.step)
        grads: Tree = None
        buffers, memory = state.buffers, state.terms
        scores: list[Scored] = []
        for piece in _pieces(bound, ranks, layout(), state, batch, numbers, prepared):
            more, scored, buffers = gradient(state, numbers, buffers, memory, piece, prepared)
            grads = more if grads is None else tree.map(torch.add, grads, more)
            memory = scored.memory
            scores.append(scored)
        rows = rows_of_domains(prepared, {domain: rows_of(batch, domain) for domain in batch})
        # All ranks have the whole value of a gathered term, and a part of the others'.
        values = {
            name: total_of([s.values[name] for s in scores]) / (ranks.size if name in layout().gathered else 1)
            for name in expression.terms
        }
        written = _written(bound, state.buffers, buffers, rows)
        others = [*(value.to(torch.float64) for value in values.values()), *written.values()]
        trainable, opt, sums = moved(state, grads, numbers, others)
        values = {name: total.to(values[name].dtype) for name, total in zip(values, sums[: len(values)], strict=True)}
        means = dict(zip(written, sums[len(values) :], strict=True))
        buffers = {slot: {k: means.get((slot, k), x) for k, x in own.items()} for slot, own in buffers.items()}
        weighed = [weigh(term, name, numbers, values[name]) for name, term in expression.terms.items()]
        logs = {"loss": total_of(weighed), **values, **numbers}
        new = advanced(expression, plan.learned, state, numbers, trainable, opt, buffers, memory)
        if expression.guard:
            logs["finite"] = finite(logs["loss"], new)
            new = guarded(logs["finite"], new, state)
        return new, logs

    return update


def _pieces(
    bound: Bound,
    ranks: Ranks,
    cut: Layout,
    state: State,
    batch: Batch,
    numbers: Mapping[str, Tensor],
    prepared: Batch,
) -> list[Piece]:
    """Cut this rank's rows into micro-batches, each with its shares of the means over all ranks."""
    expression = bound.expression
    whole = rows_of_domains(prepared, {domain: rows_of(batch, domain) for domain in batch})
    parts = split(batch, expression.accumulate)
    means = {name: term for name, term in expression.terms.items() if name not in cut.gathered}

    def count(name: str, part: Batch) -> Tensor:
        return count_of(expression, name, means[name], part, state.trainable["terms"].get(name, {}), numbers)

    pieces: list[Piece] = []
    for part, begin in parts:
        rows = rows_of_domains(prepared, {domain: rows_of(part, domain) for domain in part})
        start = {domain: whole[domain].start + begin.get(domain, 0) for domain in batch}
        # Where rows tell the number of items, their share is known without a message.
        held = {domain: rows[domain].own / whole[domain].own for domain in rows}
        held[""] = 1 / len(parts)  # a term that reads no rows is split alike
        shares = {
            name: whole[domain_of(term)].share * held[domain_of(term)] for name, term in means.items() if counted(term)
        }
        counts = {name: count(name, part) for name in means if name not in shares}
        pieces.append(Piece(part, Clock(state.seed, state.step, start), rows, counts, shares))
    if len(pieces) == 1:
        return pieces
    sums = {name: total_of([piece.counts[name] for piece in pieces]) for name in pieces[0].counts}
    _, totals = together(ranks, expression, cut, prepared, whole, {}, sums)
    return [
        Piece(p.batch, p.clock, p.rows, {}, {**p.shares, **{n: c / totals[n] for n, c in p.counts.items()}})
        for p in pieces
    ]


def _written(
    bound: Bound, before: Mapping[str, Params], after: Mapping[str, Params], rows: Mapping[str, Rows]
) -> dict[tuple[str, str], Tensor]:
    """This rank's part of the running statistics, whose mean over all rows is kept."""
    found: dict[tuple[str, str], Tensor] = {}
    for name, own in after.items():
        domains = [
            domain
            for one in bound.plan.passes
            for domain in one.domains
            if slot(bound.expression, one.net, domain) == name
        ]
        for key, x in own.items():
            if x is not before[name][key] and x.is_floating_point():
                total = sum(rows[domain].total for domain in domains)
                share = sum(rows[domain].share * (rows[domain].total / total) for domain in domains)
                found[name, key] = x * torch.as_tensor(share, dtype=x.dtype, device=x.device)
    return found
