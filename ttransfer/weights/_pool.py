"""Several checkpoints as one tree of tensors, for maps that merge them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import Made, Plan, WeightMap
from ttransfer.core._types import Params
from ttransfer.weights._routes import Tensors, all_on_meta, as_one, want_map

__all__ = ["MARK", "members", "pool", "want_checkpoint", "within"]

MARK = "/"


def pool(checkpoints: Mapping[str, Tensors] | None = None, **more: Tensors) -> Params:
    """Put several checkpoints side by side, each under a name of its own: what merging maps take for their source.

    Args:
        checkpoints: name -> checkpoint, for those who compose by program; keywords do the same.
        **more: checkpoints by keyword.

    Returns:
        All tensors, those of `a` under "a/...", in this order, first the mapping's and then the keywords': it is the
        order of a merging map's coefficients, where they have no names, and integer tensors are those of the first.

    Raises:
        TransferError: for a name with a slash in it or given twice, or for none.

    Example:
        >>> import torch, ttransfer as tt
        >>> list(tt.weights.pool(base={"w": torch.zeros(2)}, tuned={"w": torch.ones(2)}))
        ['base/w', 'tuned/w']
    """
    if twice := sorted(set(checkpoints or {}) & set(more)):
        raise TransferError(f"pool: {twice[0]!r} is given twice")
    every = {**(checkpoints or {}), **more}
    if not every:
        raise TransferError("pool: no checkpoints; give some by name, pool(base=..., tuned=...)")
    for name in every:
        want_checkpoint(f"pool: {name!r}", every[name])
        if not every[name]:
            raise TransferError(f"pool: {name!r} has no tensors")
        if MARK in name or not name:
            raise TransferError(f"pool: {name!r} cannot name a checkpoint: the name stands before a '{MARK}'")
    return as_one({f"{name}{MARK}{key}": x for name, tensors in every.items() for key, x in tensors.items()})


def want_checkpoint(whose: str, src: object) -> None:
    """Refuse what is no flat dict of tensors.

    Raises:
        TransferError: with what makes one of it.
    """
    if not isinstance(src, Mapping):
        cure = "; its weights are its state_dict()" if hasattr(src, "state_dict") else "; tt.weights.load reads a file"
        raise TransferError(f"{whose}: wanted a checkpoint, name -> tensor, got {shown(src)}{cure}")
    for name, x in src.items():
        if not isinstance(x, Tensor):
            raise TransferError(f"{whose}: wanted a checkpoint, name -> tensor, got {shown(x)} under {name!r}")


def members(whose: str, src: Tensors) -> dict[str, Params]:
    """Split a pool into its checkpoints.

    Args:
        whose: the map that asks, for its message.
        src: a pool.

    Raises:
        TransferError: for a tensor that is of no checkpoint.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, x in src.items():
        member, mark, rest = name.partition(MARK)
        if not mark:
            raise TransferError(
                f"{whose}: {name!r} is of no checkpoint; put several side by side with tt.weights.pool(a=..., b=...)"
            )
        found.setdefault(member, {})[rest] = x
    return found


def within(member: str, map: WeightMap) -> WeightMap:
    """Apply a map to one checkpoint of a pool, and leave the others.

    Args:
        member: its name in the pool.
        map: sees that checkpoint as its source.

    Returns:
        A `WeightMap` from pool to pool.

    Raises:
        TransferError: for what is no map; at use, for a checkpoint that is not in the pool.

    Example:
        >>> import torch, ttransfer as tt
        >>> both = tt.weights.pool(a={"fc.bias": torch.zeros(2)}, b={"head.bias": torch.ones(2)})
        >>> list(tt.weights.within("b", tt.weights.rename({"head": "fc"})).apply(both, {}))
        ['a/fc.bias', 'b/fc.bias']
    """
    want_map("within", map)

    def split(src: Tensors) -> dict[str, Params]:
        found = members("within", src)
        if member not in found:
            raise TransferError(f"within: the pool has no {member!r}{nearest(member, found)}")
        return found

    def apply(src: Tensors, like: Tensors) -> Params:
        found = split(src)
        return pool({name: map.apply(x, like) if name == member else x for name, x in found.items()})

    def plan(src: Tensors, like: Tensors) -> Plan:
        found = split(src)
        dry = map.plan(found[member], like)
        made = {name: Made((name,)) for name in src if name.partition(MARK)[0] != member}
        made |= {
            _in(member, name): Made(tuple(_in(member, s) for s in one.sources), one.how, one.why)
            for name, one in dry.made.items()
        }
        unused = {_in(member, name): why for name, why in dry.unused.items()}
        result = apply(all_on_meta(src), all_on_meta(like))
        made = {name: made[name] for name in result if name in made}
        bent = {k: f"source {tuple(result[k].shape)}, target {tuple(x.shape)}" for k, x in like.items()
                if k in made and result[k].shape != x.shape}  # fmt: skip
        return Plan(made, (), tuple(name for name in like if name not in made), bent, {}, unused)

    return WeightMap(apply, plan)


def _in(member: str, name: str) -> str:
    return f"{member}{MARK}{name}"
