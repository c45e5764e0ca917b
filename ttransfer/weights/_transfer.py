"""A checkpoint into a module, all of it or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import Plan, WeightMap
from ttransfer.weights._match import match, unread
from ttransfer.weights._pool import want_checkpoint
from ttransfer.weights._routes import Tensors, want_map
from ttransfer.weights._strict import refuse

__all__ = ["transfer"]


def transfer(src: Tensors, module: nn.Module, map: WeightMap | None = None) -> Plan:
    """Write a checkpoint into a module, in place, by a map.

    Nothing is written unless everything fits. A module on the meta device takes the tensors themselves, so that a
    file that `tt.weights.load` maps into memory is there once.

    Args:
        src: a checkpoint, as `tt.weights.load` or a module's state dict gives it.
        module: what to fill; its state dict is the target.
        map: None is `tt.weights.match()`.

    Returns:
        The plan that was carried out.

    Raises:
        TransferError: for a target that gets nothing or not what fits, for a source tensor that goes nowhere without
            a reason, for two values of one tied tensor, and for what the map raises. The module is then as it was.

    Example:
        >>> import torch, ttransfer as tt
        >>> net, trained = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
        >>> plan = tt.weights.transfer(trained.state_dict(), net)
        >>> torch.equal(net.weight, trained.weight)
        True
    """
    want_checkpoint("transfer", src)
    if not isinstance(cast(Any, module), nn.Module):
        raise TransferError(f"transfer: wanted a module to fill, got {shown(module)}; a map's apply fills a dict")
    chosen = match() if map is None else want_map("transfer", map)
    own = module.state_dict(keep_vars=True)
    like = {name: x.detach() for name, x in own.items() if isinstance(x, Tensor)}
    ties = _ties(own)
    plan, spared = plan_into(src, own, chosen)
    asked = {name: x for name, x in like.items() if name not in spared}
    refuse("transfer", plan, src, asked, unread(src, asked) if map is None and plan.ambiguous else "")
    new = chosen.apply(src, asked)
    new.update({name: new[twin] for name, twin in spared.items()})
    _agree(ties, new)
    for name, x in like.items():
        if name not in new or new[name].shape != x.shape:
            got = "nothing" if name not in new else f"{tuple(new[name].shape)}"
            raise TransferError(f"transfer: {name!r} {tuple(x.shape)} gets {got}, though the plan says that it fits")
    if extra := [name for name in new if name not in like]:
        raise TransferError(f"transfer: the module has no {extra[0]!r}, one of {len(extra)} tensors that the map gives")
    assign = any(x.is_meta for x in like.values())
    with torch.no_grad():
        module.load_state_dict(new, assign=assign)
    for first, *others in _groups(own).values() if assign else ():
        # torch makes a new parameter for each name.
        for name in others:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, _at(module, first))
    return plan


def plan_into(src: Tensors, own: Mapping[str, Any], map: WeightMap) -> tuple[Plan, dict[str, str]]:
    """Plan for a module's own state dict, with its variables: a file may hold tied weights once.

    Returns:
        The plan, in which what one name of a tied tensor gets the others have; and those others -> that name.
    """
    like = {name: x.detach() for name, x in own.items() if isinstance(x, Tensor)}
    ties = _ties(own)
    plan = map.plan(src, like)
    spared = {n: t for n in plan.missing for t in ties.get(n, ()) if t in plan.made}
    if spared:
        plan = map.plan(src, {name: x for name, x in like.items() if name not in spared})
        made = {name: plan.made[twin]._replace(why=f"tied to {twin!r}") for name, twin in spared.items()}
        plan = plan._replace(made={name: {**plan.made, **made}[name] for name in like if name in {**plan.made, **made}})
    return plan, spared


def _at(module: nn.Module, name: str) -> Any:
    parent, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(parent), leaf)


def _groups(own: Mapping[str, Any]) -> dict[int, list[str]]:
    """The names of each tensor."""
    names: dict[int, list[str]] = {}
    for name, x in own.items():
        names.setdefault(id(x), []).append(name)
    return names


def _ties(own: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Name -> the other names of the same tensor."""
    several = [names for names in _groups(own).values() if len(names) > 1]
    return {name: tuple(n for n in names if n != name) for names in several for name in names}


def _agree(ties: Mapping[str, tuple[str, ...]], new: Tensors) -> None:
    """Refuse two values for one tensor."""
    for name, twins in ties.items():
        for twin in twins:
            if name in new and twin in new and not _same(new[name], new[twin]):
                raise TransferError(
                    f"transfer: {name!r} and {twin!r} are one tensor of the module, and would get two different ones"
                )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, where both are NaN too."""
    if a is b or a.shape != b.shape:
        return a is b
    return bool(((a == b) | ((a != a) & (b != b))).all())
