"""What a sharded step needs done outside of its graph: agreement on rows, whole states, common decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ttransfer.core import _tree as tree
from ttransfer.core._alternate import Alternation
from ttransfer.core._hyper import resolve
from ttransfer.core._inputs import Inputs
from ttransfer.core._spec import declared
from ttransfer.core._transforms import Outside
from ttransfer.core._types import Batch, State
from ttransfer.dist._inside import Sharding, trained, with_opt
from ttransfer.dist._layout import layout_of
from ttransfer.dist._norms import compiles
from ttransfer.dist._ranks import agreed, any_of, with_rows
from ttransfer.dist._zero import Spread, part, whole

__all__ = ["outside_step"]


def outside_step(inputs: Inputs, expression: Any, sharding: Sharding) -> Outside:
    """Return what is to be done outside of the graph of a sharded step.

    Args:
        inputs: what the step takes.
        expression: what it was built from.
        sharding: how it is sharded; what is found out at the first call is put there.
    """
    ranks = sharding.ranks
    domains = tuple(dict.fromkeys(domain for _, plan in inputs.parts.values() for domain in plan.fields))

    def prepare(state: State, batch: Any, check: Callable[[], Batch]) -> Batch:
        device = state.step.device if isinstance(state, State) else torch.device("cpu")
        checked, table = agreed(ranks, domains, batch, inputs.stacked, check)
        if not sharding.found:
            _find(inputs, expression, sharding, state, checked)
        return with_rows(ranks, checked, domains, table, device)

    def collected(state: State) -> State:
        if not sharding.spread:
            return state
        opts = _opts(expression, state)
        return with_opt(
            state,
            {
                phase: whole(ranks, one.optimizer, trainable, opts[phase])
                for phase, (one, trainable) in trained(expression, state).items()
            },
        )

    def own(state: State) -> State:
        if not sharding.spread:
            return state
        opts = _opts(expression, state)
        return with_opt(
            state,
            {
                phase: part(ranks, one.optimizer, trainable, opts[phase], state.step.shape)
                for phase, (one, trainable) in trained(expression, state).items()
            },
        )

    def agree(here: bool) -> bool:
        return any_of(ranks, here)

    def uncompiled() -> str:
        if not sharding.norms or compiles(inputs.depth > 0):
            return ""
        of = "an ensemble or a sweep" if inputs.depth else "it"
        return (
            f"{sharding.norms[0]!r} normalises by the statistics of all ranks' rows, whose gradient needs an exchange "
            f"in the backward pass, and torch {torch.__version__} cannot trace that for {of}; run the step uncompiled, "
            "or use tt.shard(..., batchnorm='local'), or buffers={net: 'eval'}"
        )

    def gathered(phase: str, state: State, batch: Batch) -> Mapping[str, str]:
        one = expression.phases[phase].spec.expression if phase else expression
        return layout_of(one, inputs.parts[phase][1], state, batch).gathered

    return Outside(prepare, collected, own, agree, ranks.rank == 0, uncompiled, gathered)


def _opts(expression: Any, state: State) -> dict[str, Any]:
    return state.opt if isinstance(expression, Alternation) else {"": state.opt}


def _find(inputs: Inputs, expression: Any, sharding: Sharding, state: State, batch: Batch) -> None:
    """Find out how the terms and the optimizers are split, by one member's state and batch."""
    for _ in range(inputs.depth):
        state = tree.map(lambda x: x[0], state)
    for _ in range(inputs.stacked):
        batch = tree.map(lambda x: x[0], batch)
    for phase, (one, trainable) in trained(expression, state).items():
        prefix = f"{phase}." if phase else ""
        memory = {name: state.terms[prefix + name] for name in one.terms}
        hyper = {k.removeprefix(prefix): v for k, v in state.hyper.items() if k.startswith(prefix)}
        own = State(
            {**state.trainable, "terms": trainable["terms"]}, state.frozen, state.buffers, memory, {}, state.ema, hyper,
            state.step, state.seed,
        )  # fmt: skip
        how = None
        if sharding.spread:
            how = Spread(sharding.ranks, one, trainable, resolve(declared(one), hyper, state.step))
        sharding.found[phase] = layout_of(one, inputs.parts[phase][1], own, batch), how
