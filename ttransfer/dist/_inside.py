"""The sharded step of one member: init and update, for batches that are prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree
from ttransfer.core._alternate import Alternation, build_alternation, trained_by
from ttransfer.core._forward import bind
from ttransfer.core._inputs import inputs_of
from ttransfer.core._spec import Expression, plan_of
from ttransfer.core._step import Spec, Step, build_step, unshared
from ttransfer.core._types import Batch, Logs, State, Tree
from ttransfer.core._update import moved
from ttransfer.dist._channel import channel
from ttransfer.dist._exchange import summed
from ttransfer.dist._layout import Layout
from ttransfer.dist._norms import synchronise
from ttransfer.dist._ranks import Ranks, rows_in, table_of
from ttransfer.dist._update import Moved, build_sharded
from ttransfer.dist._zero import Spread, keep, owners_of, spread

__all__ = ["Sharding", "sharded_step", "trained", "with_opt"]


class Sharding(NamedTuple):
    """How a step is sharded.

    Attributes:
        ranks: who takes part.
        synced: whether batch normalisation takes its statistics from all ranks.
        spread: whether the optimizer's state is spread over the ranks.
        found: phase, "" in a plain step -> how its terms and its optimizer are split; filled at the first call.
        norms: names of the modules that are synced; filled when the step is built.
    """

    ranks: Ranks
    synced: bool
    spread: bool
    found: dict[str, tuple[Layout, Spread | None]]
    norms: list[str]


def sharded_step(expression: Any, sharding: Sharding) -> Step:
    """Build the sharded step of an expression or an alternation."""
    if isinstance(expression, Alternation):
        phases = {
            name: Step(phase.init, _update(phase.spec.expression, sharding, name), phase.spec)
            for name, phase in expression.phases.items()
        }
        plain = build_alternation(Alternation(phases, expression.order))
        update = plain.update
    else:
        plain = build_step(expression)
        update = _update(expression, sharding, "")

    domains = tuple(dict.fromkeys(d for _, plan in inputs_of(Spec(expression)).parts.values() for d in plan.fields))

    def init(example_batch: Batch, seed: int = 0) -> State:
        state = plain.init(_of_all_rows(sharding.ranks, domains, example_batch), seed)
        if sharding.ranks.size > 1:
            # Modules may have been built under different random states.
            for leaf in tree.leaves(state):
                channel(sharding.ranks.group).broadcast(leaf, 0)
        if not sharding.spread:
            return state
        own: dict[str, Tree] = {}
        for phase, (one, trainable) in trained(expression, state).items():
            kept = keep(sharding.ranks.rank, owners_of(trainable, sharding.ranks.size), trainable)
            own[phase] = one.optimizer.init(kept)
        return unshared(with_opt(state, own))

    return Step(init, update, plain.spec)


def _of_all_rows(ranks: Ranks, domains: Sequence[str], batch: Any) -> Any:
    """An example with as many rows as all ranks have: a loss that wants two rows may find one on a rank."""
    if ranks.size == 1:
        return batch
    totals = [sum(have) for have in zip(*table_of(ranks, [rows_in(batch, d, 0) for d in domains]), strict=True)]
    wanted = {domain: n for domain, n in zip(domains, totals, strict=True) if rows_in(batch, domain, 0) > 0}
    return {
        domain: {f: x[torch.arange(wanted[domain]) % x.shape[0]] for f, x in fields.items()}
        if domain in wanted else fields
        for domain, fields in batch.items()
    }  # fmt: skip


def trained(expression: Any, state: State) -> dict[str, tuple[Expression, Tree]]:
    """phase -> its expression and what it trains; a plain step is one phase, called ""."""
    if not isinstance(expression, Alternation):
        return {"": (expression, state.trainable)}
    inner = {name: phase.spec.expression for name, phase in expression.phases.items()}
    return {name: (one, trained_by(one, plan_of(one).learned, state, name)) for name, one in inner.items()}


def with_opt(state: State, own: Mapping[str, Tree]) -> State:
    """The state with the optimizers' states of the phases."""
    opt = own[""] if "" in own else dict(own)
    return State(
        state.trainable, state.frozen, state.buffers, state.terms, opt, state.ema, state.hyper, state.step, state.seed
    )


def _update(expression: Expression, sharding: Sharding, phase: str) -> Callable[[State, Batch], tuple[State, Logs]]:
    ranks, plan = sharding.ranks, plan_of(expression)

    def adjust(net: nn.Module) -> None:
        sharding.norms.extend(synchronise(net, ranks.group))

    def replicated(
        state: State, grads: Tree, numbers: Mapping[str, Tensor], others: list[Tensor]
    ) -> tuple[Tree, Tree, list[Tensor]]:
        leaves = tree.leaves(grads)
        sums = summed(ranks, [*leaves, *others])
        total = tree.unflatten(grads, sums[: len(leaves)])
        return *moved(expression, state.trainable, state.opt, total, numbers), sums[len(leaves) :]

    def apart(
        state: State, grads: Tree, numbers: Mapping[str, Tensor], others: list[Tensor]
    ) -> tuple[Tree, Tree, list[Tensor]]:
        how = sharding.found[phase][1]
        assert how is not None  # found together with the layout
        return spread(ranks, expression, how, state, grads, numbers, others)

    bound = bind(expression, plan, adjust if sharding.synced else None)
    if plan.called and sharding.norms:
        raise TransferError(
            f"shard: a term reads {sorted(plan.called)[0]!r} as a function, and {sharding.norms[0]!r} normalises by "
            "the rows of all ranks, which a function that a loss calls cannot ask for; use batchnorm='local', or "
            "buffers={net: 'eval'}"
        )
    step: Moved = apart if sharding.spread else replicated
    return build_sharded(bound, ranks, lambda: sharding.found[phase][0], step)
