"""`tt.shard`: one step over many processes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist

from ttransfer._errors import TransferError, nearest
from ttransfer.core._inputs import check, inputs_of
from ttransfer.core._members import beneath, outermost
from ttransfer.core._step import Spec, Step
from ttransfer.core._transforms import SHARDS, Transform
from ttransfer.core._types import Batch, Logs, State
from ttransfer.dist._channel import channel
from ttransfer.dist._inside import Sharding, sharded_step
from ttransfer.dist._outside import outside_step
from ttransfer.dist._ranks import Ranks

__all__ = ["ranks_of", "shard"]

_BATCHNORM = ("synced", "local")
_OPTIMIZER = ("replicated", "sharded")


def shard(step: Step, mesh: Any, *, batchnorm: str = "synced", optimizer: str = "replicated") -> Step:
    """Spread a step over processes, each of which runs the nets on its rows of the batch.

    The sharded step takes this rank's part of a batch and makes the update that one process would make of the whole
    batch, ranks in order: the same parameters, logs and dropout masks, up to rounding. Terms that couple rows (MMD,
    CORAL, relations, contrasts) see the rows of all ranks; means over rows are weighted by what each rank holds of
    what they count. A term that does not say that it is a mean counts as coupled: that is always right, and
    ``tt.term(..., coupled=False)`` is cheaper where it is true.

    The state is the same on all ranks (`init` takes rank 0's), but for what ``optimizer="sharded"`` spreads.

    Args:
        step: any step: an ensemble, a sweep, an alternation, with accumulation, compiled.
        mesh: what `tt.dist.init` returns: a one-dimensional `DeviceMesh`, or a process group.
        batchnorm: "synced" normalises by the statistics of all ranks' rows, as one process would; "local" by this
            rank's rows, as DDP does, which is another function, and keeps the mean of the ranks' running statistics.
            It matters only for nets in train mode with batch normalisation whose buffers are not "eval".
        optimizer: "replicated" keeps the optimizer's whole state on each rank, "sharded" a part of it (ZeRO-1).

    Returns:
        A Step for this rank. Numbers of rows may differ between ranks and steps; each rank needs one at least.

    Raises:
        TransferError: if the mesh has more than one dimension; at the first call, for a term or an optimizer that
            cannot be spread; at each call, on all ranks, if one of them has no batch for the step.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> train = tt.step({"net": tt.functional(torch.nn.Linear(2, 2))}, tt.optim.sgd(0.1), trainable=("net",),
        ...                 task=tt.term(F.cross_entropy, "net(source)", "source.y"))
        >>> sharded = tt.shard(train, tt.dist.init())  # under torchrun, each process with its part of the batch
        >>> batch = {"source": {"x": torch.ones(4, 2), "y": torch.tensor([0, 1, 0, 1])}}
        >>> state, logs = sharded(sharded.init(batch), batch)
        >>> int(state.step)
        1

    References:
        Samyam Rajbhandari, Jeff Rasley, Olatunji Ruwase, Yuxiong He.
        ZeRO: Memory Optimizations Toward Training Trillion Parameter Models. 2020.
    """
    for name, given, known in (("batchnorm", batchnorm, _BATCHNORM), ("optimizer", optimizer, _OPTIMIZER)):
        if given not in known:
            raise TransferError(
                f"shard: {name} must be one of {', '.join(known)}; got {given!r}{nearest(given, known)}"
            )
    if any(transform.name == "shard" for transform in step.spec.transforms):
        raise TransferError("shard: this step is sharded already; shard the step it was made from")
    options = {"mesh": mesh, "batchnorm": batchnorm, "optimizer": optimizer}
    again = functools.partial(shard, **options)
    if outermost(step):
        return beneath(step, Transform("shard", options, again))
    sharding = Sharding(ranks_of(mesh), batchnorm == "synced", optimizer == "sharded", {}, [])
    inner = sharded_step(step.spec.expression, sharding)
    for transform in step.spec.transforms:
        inner = transform.apply(inner)
    inputs = inputs_of(step.spec)
    outside = outside_step(inputs, step.spec.expression, sharding)

    def update(state: State, batch: Batch) -> tuple[State, Logs]:
        prepared = isinstance(cast(Any, batch), Mapping) and SHARDS in batch
        if not torch.compiler.is_compiling() and not prepared:
            batch = outside.prepare(state, batch, lambda: check(inputs, state, batch))
        return inner.update(state, batch)

    made = Transform("shard", options, again, outer=True, outside=outside)
    return Step(inner.init, update, Spec(step.spec.expression, (*step.spec.transforms, made)))


def ranks_of(mesh: Any) -> Ranks:
    """Who takes part in a mesh, a process group or a channel."""
    if isinstance(mesh, Ranks):
        return mesh
    if hasattr(mesh, "get_group"):
        if mesh.ndim != 1:
            raise TransferError(
                f"shard: the mesh has {mesh.ndim} dimensions, of {tuple(mesh.shape)} ranks; rows are spread over one: "
                "pick it by name, mesh['batch']"
            )
        if mesh.get_coordinate() is None:
            raise TransferError(f"shard: rank {dist.get_rank()} is not among the mesh's ranks, {mesh.mesh.tolist()}")
        mesh = mesh.get_group()
    if not isinstance(mesh, dist.ProcessGroup):
        raise TransferError(
            f"shard: expected a DeviceMesh or a process group, got {type(mesh).__name__}; see tt.dist.init"
        )
    to = channel(mesh.group_name)
    return Ranks(to.rank, to.size, mesh.group_name)
