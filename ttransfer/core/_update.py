"""The update: one pure function from (state, batch) to (state, logs)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree
from ttransfer.core._forward import Bound, Clock, Outs, check_batch, picked, raw_readings, rows_of, run_passes
from ttransfer.core._guard import finite, guarded
from ttransfer.core._hyper import resolve
from ttransfer.core._paths import Field, Forward, Keys
from ttransfer.core._pipes import regroup, run_pipes, run_stages
from ttransfer.core._reads import Read, flat
from ttransfer.core._score import Scored, numbers_of, score, total_of
from ttransfer.core._spec import Expression, declared, source_of
from ttransfer.core._states import state_check
from ttransfer.core._types import Batch, Logs, Params, State, Term, Tree

__all__ = [
    "advanced",
    "build_update",
    "count_of",
    "moved",
    "params_of",
    "split",
]


def params_of(state: State, trainable: Mapping[str, Any]) -> dict[str, Params]:
    """net -> all its parameters, with these trainable ones; averaged nets too."""
    nets = {net: {**state.frozen.get(net, {}), **trainable.get(net, {})} for net in {**state.frozen, **trainable}}
    nets.pop("terms", None)
    return {**nets, **state.ema}


def build_update(bound: Bound) -> Callable[[State, Batch], tuple[State, Logs]]:
    """Return the update of an expression."""
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
        batch: Batch,
        clock: Clock,
        shares: Mapping[str, Tensor],
    ) -> tuple[Tree, tuple[Scored, dict[str, Params]]]:
        # Nets that do not learn run outside the gradient, once.
        known, buffers = run_passes(bound, still, params_of(state, state.trainable), buffers, batch, clock)

        def objective(trainable: dict[str, Any]) -> tuple[Tensor, tuple[Scored, dict[str, Params]]]:
            params = params_of(state, trainable)
            outs, after = run_passes(bound, moving, params, buffers, batch, clock)
            readings = piped(bound, {**known, **outs}, params, after, batch, clock, trainable["terms"], numbers)
            scored = score(expression, trainable["terms"], memory, numbers, state.step, readings, shares)
            return scored.total, (scored, after)

        return torch.func.grad(objective, has_aux=True)(state.trainable)

    def update(state: State, batch: Batch) -> tuple[State, Logs]:
        if not torch.compiler.is_compiling():
            check_state(state, 0)
            batch = check_batch(plan, batch)
        numbers = resolve(numbers_wanted, state.hyper, state.step)
        parts = split(batch, expression.accumulate)
        shares = _shares(expression, [part for part, _ in parts], state.trainable["terms"], numbers)
        grads: Tree = None
        buffers, memory = state.buffers, state.terms
        totals: list[Tensor] = []
        values: list[dict[str, Tensor]] = []
        for (part, start), share in zip(parts, shares, strict=True):
            clock = Clock(state.seed, state.step, start)
            found, (scored, buffers) = gradient(state, numbers, buffers, memory, part, clock, share)
            memory = scored.memory
            grads = found if grads is None else tree.map(torch.add, grads, found)
            totals.append(scored.total)
            values.append(scored.values)
        logs = {"loss": total_of(totals), **{n: total_of([v[n] for v in values]) for n in values[0]}, **numbers}
        trainable, opt = moved(expression, state.trainable, state.opt, grads, numbers)
        new = advanced(expression, plan.learned, state, numbers, trainable, opt, buffers, memory)
        if expression.guard:
            logs["finite"] = finite(logs["loss"], new)
            new = guarded(logs["finite"], new, state)
        return new, logs

    return update


def piped(
    bound: Bound,
    outs: Outs,
    params: Mapping[str, Params],
    buffers: Mapping[str, Params],
    batch: Batch,
    clock: Clock,
    owned: Mapping[str, Params],
    numbers: Mapping[str, Tensor],
) -> dict[str, list[Any]]:
    """What each term reads, after its pipes."""
    found: dict[str, list[Any]] = {}
    for name, term in bound.expression.terms.items():
        raw = raw_readings(bound, term, outs, params, buffers, batch, clock)
        found[name] = run_pipes(term, owned.get(name, {}), numbers_of(name, numbers, raw), raw)
    return found


def split(batch: Batch, pieces: int) -> list[tuple[Batch, dict[str, int]]]:
    """Cut every domain into micro-batches as equal as can be; with each, where its rows begin."""
    if pieces == 1:
        return [(batch, {})]
    parts: list[tuple[Batch, dict[str, int]]] = []
    for i in range(pieces):
        part: dict[str, dict[str, Tensor]] = {}
        start: dict[str, int] = {}
        for domain, fields in batch.items():
            n = rows_of(batch, domain)
            if n < pieces:
                raise TransferError(f"accumulate={pieces}: domain {domain!r} has only {n} rows to split")
            begin, end = i * n // pieces, (i + 1) * n // pieces
            part[domain] = {field: x[begin:end] for field, x in fields.items()}
            start[domain] = begin
        parts.append((part, start))
    return parts


def _shares(
    expression: Expression, parts: list[Batch], owned: Mapping[str, Params], numbers: Mapping[str, Tensor]
) -> list[dict[str, Tensor]]:
    """For each micro-batch, the share of each term's mean that it holds: a mean of means is wrong."""
    if len(parts) == 1:
        return [{}]
    counts = [
        {n: count_of(expression, n, term, part, owned.get(n, {}), numbers) for n, term in expression.terms.items()}
        for part in parts
    ]
    return [{name: count[name] / sum(c[name] for c in counts) for name in count} for count in counts]


def count_of(
    expression: Expression, name: str, term: Term, batch: Batch, own: Params, numbers: Mapping[str, Tensor]
) -> Tensor:
    """Count without running a forward: fields are there, and a forward has as many rows as its input."""

    def stand_in(position: int, read: Read) -> Any:
        path = read.path
        if isinstance(path, Field):
            field = picked(batch[path.domain][path.field], path)
            return run_stages(read, position, own, numbers_of(name, numbers, [field]), field)
        if isinstance(path, Keys):
            return torch.arange(rows_of(batch, path.domain))
        return batch[path.domain][source_of(expression, path.net).inputs[0]] if isinstance(path, Forward) else None

    stand_ins = [stand_in(position, read) for position, read in enumerate(flat(term.reads))]
    count = term.count
    assert count is not None  # the expression refuses to accumulate coupled terms
    # A quotient of integers would be in the default dtype, float32.
    return torch.as_tensor(count(*regroup(term.reads, stand_ins)), dtype=torch.float64)


def moved(
    expression: Expression, trainable: Tree, opt: Tree, grads: Tree, numbers: Mapping[str, Tensor]
) -> tuple[Tree, Tree]:
    """What trains and the optimizer's state, after one update."""
    own = {key[len("optim.") :]: value for key, value in numbers.items() if key.startswith("optim.")}
    updates, opt = expression.optimizer.update(grads, opt, trainable, own)
    return tree.map(lambda p, u: (p + u).to(p.dtype), trainable, updates), opt


def advanced(
    expression: Expression,
    learned: Mapping[str, frozenset[str]],
    state: State,
    numbers: Mapping[str, Tensor],
    trainable: Tree,
    opt: Tree,
    buffers: Mapping[str, Params],
    memory: Mapping[str, Tree],
) -> State:
    """The state after one update of what trains: averages follow, the step is counted."""
    after = dict(buffers)
    ema: dict[str, Params] = {}
    for name, follower in expression.ema.items():
        rate = 1.0 - numbers[f"{name}.decay"]
        old, new = state.ema[name], trainable[follower.of] if follower.of in trainable else {}
        ema[name] = {k: tree.lerp(v, new[k], rate) if k in learned.get(follower.of, ()) else v for k, v in old.items()}
        if follower.buffers == "copy":
            after[name] = {k: v.clone() for k, v in after[follower.of].items()}
        elif follower.buffers == "lerp":
            after[name] = tree.lerp(state.buffers[name], after[follower.of], rate)
    memory = {name: memory[name] for name in state.terms}
    after = {name: after[name] for name in state.buffers}
    return State(trainable, state.frozen, after, memory, opt, ema, state.hyper, state.step + 1, state.seed)
