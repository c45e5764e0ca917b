"""A checkpoint into a module, all of it or none."""

from __future__ import annotations

import torch
from torch import nn

from ttransfer._errors import TransferError
from ttransfer.core._maps import Plan, WeightMap
from ttransfer.weights._match import match
from ttransfer.weights._routes import Tensors
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
            a reason, and for what the map raises. The module is then as it was.

    Example:
        >>> import torch, ttransfer as tt
        >>> net, trained = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
        >>> plan = tt.weights.transfer(trained.state_dict(), net)
        >>> torch.equal(net.weight, trained.weight)
        True
    """
    chosen = match() if map is None else map
    like = module.state_dict()
    plan = chosen.plan(src, like)
    refuse("transfer", plan, src, like)
    new = chosen.apply(src, like)
    for name, x in like.items():
        if name not in new or new[name].shape != x.shape:
            got = "nothing" if name not in new else f"{tuple(new[name].shape)}"
            raise TransferError(f"transfer: {name!r} {tuple(x.shape)} gets {got}, though the plan says that it fits")
    if extra := [name for name in new if name not in like]:
        raise TransferError(f"transfer: the module has no {extra[0]!r}, one of {len(extra)} tensors that the map gives")
    with torch.no_grad():
        module.load_state_dict(new, assign=any(x.is_meta for x in like.values()))
    return plan
