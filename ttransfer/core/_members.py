"""Many runs in one step: ensembles over seeds, sweeps over hyper-parameters.

Each is a vmap of the whole update over a State whose every leaf is stacked. A member of the stack is
the state of a run of its own, and equals it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree
from ttransfer.core._hyper import numbers_set
from ttransfer.core._rebuild import rebuild
from ttransfer.core._step import Spec, Step
from ttransfer.core._transforms import SHARDS, TOTALS, Transform
from ttransfer.core._types import Batch, Logs, State

__all__ = ["beneath", "ensemble", "grid", "member", "members_of", "outermost", "sweep"]


def ensemble(step: Step, n: int, *, batches: str = "shared") -> Step:
    """Train `n` members at once; member i is the run with seed ``seed + i``.

    Nets made by a factory start differently in each member; a net given as a module starts the same, and
    the members then differ by dropout and by the terms' own parameters.

    Args:
        step: the step of one member.
        n: number of members.
        batches: "shared" gives all members the same batch, "stacked" takes batches whose tensors have a
            leading dimension of size n.

    Returns:
        A Step whose state and logs are stacked along a leading dimension of size n; see `member`.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> net = tt.functional(lambda: torch.nn.Linear(2, 2))
        >>> train = tt.step({"net": net}, tt.optim.sgd(0.1), trainable=("net",),
        ...                 task=tt.term(F.cross_entropy, "net(source)", "source.y"))
        >>> three = tt.ensemble(train, 3)
        >>> batch = {"source": {"x": torch.ones(4, 2), "y": torch.tensor([0, 1, 0, 1])}}
        >>> state, logs = three(three.init(batch, seed=0), batch)
        >>> logs["loss"].shape, tt.member(state, 1).trainable["net"]["weight"].shape
        (torch.Size([3]), torch.Size([2, 2]))
    """
    whole: Any = n
    if isinstance(whole, bool) or not isinstance(whole, int) or n < 1:
        raise TransferError(f"ensemble: n must be a whole number of at least 1, got {n!r}")
    if batches not in ("shared", "stacked"):
        raise TransferError(f"ensemble: batches must be 'shared' or 'stacked', got {batches!r}")
    stacked = batches == "stacked"
    again = Transform("ensemble", {"n": n, "batches": batches}, lambda base: ensemble(base, n, batches=batches))
    if outermost(step):
        return beneath(step, again)

    def init(example_batch: Batch, seed: int = 0) -> State:
        runs = [step.init(_batch_of(example_batch, i, n) if stacked else example_batch, seed + i) for i in range(n)]
        return tree.map(lambda *leaves: torch.stack(leaves), *runs)

    def update(state: State, batch: Batch) -> tuple[State, Logs]:
        axes: Any = 0 if stacked else None
        if stacked and SHARDS in batch:  # what is known of other ranks' rows is the same for all members
            axes = {domain: None if domain in (SHARDS, TOTALS) else 0 for domain in batch}
        return torch.func.vmap(step.update, in_dims=(0, axes), randomness="different")(state, batch)

    return Step(init, _of_members(update, n), Spec(step.spec.expression, (*step.spec.transforms, again)))


def _of_members(update: Callable[..., tuple[State, Logs]], n: int) -> Callable[[State, Batch], tuple[State, Logs]]:
    """Refuse a state of one run, or of another number of members, before vmap does in words of its own."""

    def checked(state: State, batch: Batch) -> tuple[State, Logs]:
        if not torch.compiler.is_compiling() and isinstance(cast(Any, state), State) and state.step.shape[:1] != (n,):
            stacked = f"{state.step.shape[0]} members" if state.step.ndim else "one run"
            raise TransferError(f"this step takes the state of {n} members, got one of {stacked}; see init of the step")
        return update(state, batch)

    return checked


def _batch_of(batch: Batch, i: int, n: int) -> Batch:
    for domain, fields in batch.items():
        for field, tensor in fields.items():
            if tensor.shape[:1] != (n,):
                raise TransferError(
                    f"ensemble: with batches='stacked', {domain}.{field} must have a leading dimension of {n}, "
                    f"got {tuple(tensor.shape)}"
                )
    return {domain: {field: tensor[i] for field, tensor in fields.items()} for domain, fields in batch.items()}


def sweep(step: Step, values: Mapping[str, Sequence[float]]) -> Step:
    """Train one member for each setting of hyper-parameters, all at once, all from the same start.

    Args:
        step: the step of one member.
        values: name in `State.hyper`, or "net.name" of a net's parameter that is one number -> its value in each
            member; several names are zipped. `tt.grid` crosses them.

    Returns:
        A Step whose state and logs are stacked along a leading dimension.

    Raises:
        TransferError: when lists differ in length, for what are no numbers; at `init`, for a name that is neither.

    Example:
        >>> import torch, ttransfer as tt
        >>> nets = {"a": tt.functional(torch.nn.Linear(2, 2)), "b": tt.functional(torch.nn.Linear(2, 2))}
        >>> train = tt.step(nets, tt.optim.sgd(0.1), trainable=("a",), kd=tt.term(tt.losses.kd, "a(s)", "b(s)"))
        >>> many = tt.sweep(train, {"kd.temperature": [1.0, 2.0, 4.0]})
        >>> many.init({"s": {"x": torch.ones(4, 2)}}).hyper["kd.temperature"]
        tensor([1., 2., 4.], dtype=torch.float64)
    """
    for name, given in values.items():
        if isinstance(given, str) or any(isinstance(v, (str, bytes)) or v is None for v in cast(Any, given)):
            raise TransferError(f"sweep: wanted numbers for {name!r}, got {given!r}")
    settings = {name: [float(v) for v in given] for name, given in values.items()}
    lengths = {name: len(given) for name, given in settings.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise TransferError(f"sweep: lists are zipped, so they need one length, and some: {lengths}; tt.grid crosses")
    n = next(iter(lengths.values()))
    again = Transform("sweep", {name: tuple(given) for name, given in settings.items()}, lambda b: sweep(b, settings))
    if outermost(step):
        return beneath(step, again)

    def init(example_batch: Batch, seed: int = 0) -> State:
        one = step.init(example_batch, seed)
        many = tree.map(lambda x: torch.stack([x] * n), one)
        within = (1,) * (many.step.ndim - 1)  # of the members that each run has itself
        columns = {name: torch.tensor(given, dtype=torch.float64) for name, given in settings.items()}
        return numbers_set("sweep", many, {name: column.reshape(n, *within) for name, column in columns.items()})

    update = torch.func.vmap(step.update, in_dims=(0, None), randomness="different")
    return Step(init, _of_members(update, n), Spec(step.spec.expression, (*step.spec.transforms, again)))


def outermost(step: Step) -> bool:
    """Say whether a step's last transform must stay outside of a vmap."""
    return bool(step.spec.transforms) and step.spec.transforms[-1].outer


def beneath(step: Step, transform: Transform) -> Step:
    """Apply a transform beneath the last one: a graph cannot be vmapped, nor can talk between processes."""
    inner = rebuild(step.spec.expression, step.spec.transforms[:-1])
    return step.spec.transforms[-1].apply(transform.apply(inner))


def grid(values: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Cross lists of values, for `sweep`.

    Args:
        values: name -> its values.

    Example:
        >>> import ttransfer as tt
        >>> tt.grid({"kd.temperature": [1, 4], "kd.weight": [0.1, 0.9]})
        {'kd.temperature': [1, 1, 4, 4], 'kd.weight': [0.1, 0.9, 0.1, 0.9]}
    """
    rows = list(itertools.product(*values.values()))
    return {name: [row[i] for row in rows] for i, name in enumerate(values)}


def member(state: State, *index: int) -> State:
    """Take one member's state out of a stacked one.

    Args:
        state: of an ensemble or a sweep.
        *index: the member's number; a second one for a sweep of an ensemble.

    Returns:
        A State for the step of one member, sharing no storage with the stacked one.

    Raises:
        TransferError: when there is no such member.

    Example:
        >>> import torch, ttransfer as tt
        >>> zero = torch.zeros(3, dtype=torch.int64)
        >>> state = tt.State({"net": {"w": torch.arange(6.).reshape(3, 2)}}, {}, {}, {}, (), {}, {}, zero, zero)
        >>> tt.member(state, 1).trainable["net"]["w"]
        tensor([2., 3.])
    """
    for i in index:
        if state.step.ndim == 0:
            raise TransferError("member: this is the state of one run, not of an ensemble or a sweep")
        n = state.step.shape[0]
        if not -n <= i < n:
            raise TransferError(f"member: no member {i}, there are {n}")
        state = tree.map(lambda x, i=i: _copy(x[i]), state)
    return state


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def members_of(transforms: Sequence[Any]) -> int:
    """How many times an update was vmapped."""
    return sum(transform.name in ("ensemble", "sweep") for transform in transforms)
