"""From one step to the next: what was learned goes on, the rest begins anew."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree
from ttransfer.core._step import Step
from ttransfer.core._types import Batch, State

__all__ = ["carry"]


def carry(state: State, step: Step, example_batch: Batch, seed: int = 0) -> State:
    """Start a step from where another one ended: other terms, other optimizer, other parameters that train.

    Parameters, buffers and what terms have learned and kept go on under their names. The optimizer's state, the
    schedules' numbers and the count of steps begin anew, as does what the other step did not have.

    Args:
        state: of any step, of as many members as `step` has.
        step: the step to start.
        example_batch: as for `step.init`.
        seed: as for `step.init`; of another seed, dropout does not repeat the masks of the step before.

    Returns:
        A State for `step`, sharing no storage with `state`.

    Raises:
        TransferError: if a net, or a term, of one name has tensors of other shapes in the two, or no net is of both.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 3))
        >>> full = tt.step({"net": tt.functional(net)}, tt.optim.sgd(0.1), trainable=("net",),
        ...                task=tt.term(F.cross_entropy, "net(data)", "data.y"))
        >>> probe = tt.replace(full, trainable={"net": "1.*"})
        >>> batch = {"data": {"x": torch.ones(3, 2), "y": torch.tensor([0, 1, 2])}}
        >>> state, _ = probe(probe.init(batch), batch)
        >>> state = tt.carry(state, full, batch)
        >>> state, _ = full(state, batch)
    """
    new = step.init(example_batch, seed)
    old = _named(state)
    wanted = _named(new)
    for name, x in wanted.items():
        if name in old and old[name].shape != x.shape:
            raise TransferError(
                f"carry: {'.'.join(name)} is {tuple(old[name].shape)} in the state and {tuple(x.shape)} in the step"
            )
    if not wanted.keys() & old.keys():
        raise TransferError(
            f"carry: the state and the step have no net in common: {sorted({n for _, n, _ in old})} and "
            f"{sorted({n for _, n, _ in wanted})}"
        )
    # Into tensors of the new state's own, in its order: neither storage nor a graph's guards are of the old one.
    taken = {name: old[name].detach().to(x).clone() if name in old else x for name, x in wanted.items()}

    def filled(kind: str, group: dict[str, Any]) -> dict[str, Any]:
        return {
            owner: {key: taken[kind, owner, key] for key in own} if isinstance(own, dict) else own
            for owner, own in group.items()
        }

    nets = {net: own for net, own in new.trainable.items() if net != "terms"}
    trainable = {**filled("net", nets), "terms": filled("term", new.trainable["terms"])}
    kept = {
        term: tree.unflatten(own, [taken["memory", term, path] for path in tree.paths(own)])
        for term, own in new.terms.items()
    }
    return State(
        trainable, filled("net", new.frozen), filled("buffer", new.buffers), kept, new.opt, filled("net", new.ema),
        new.hyper, new.step, new.seed,
    )  # fmt: skip


def _named(state: State) -> dict[tuple[str, str, str], Tensor]:
    """Everything that goes on: (kind, whose, name) -> tensor."""
    found: dict[tuple[str, str, str], Tensor] = {}
    for group in (state.trainable, state.frozen, state.ema):
        for net, own in group.items():
            if net != "terms":
                found.update({("net", net, key): x for key, x in own.items()})
    for term, own in state.trainable["terms"].items():
        found.update({("term", term, key): x for key, x in own.items()})
    for slot, own in state.buffers.items():
        found.update({("buffer", slot, key): x for key, x in own.items()})
    for term, own in state.terms.items():
        found.update({("memory", term, path): x for path, x in tree.paths(own).items()})
    return found
