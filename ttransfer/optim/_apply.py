"""Using an optimizer by hand, without a step."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer.core._hyper import numbers, resolve
from ttransfer.core._types import Optimizer, Tree

__all__ = ["apply_updates", "hyper_at"]

T = TypeVar("T")


def apply_updates(params: T, updates: Tree) -> T:
    """Add updates to parameters.

    The sum is taken in the wider dtype of the two and cast to the parameter's at the end.

    Args:
        params: tree of tensors.
        updates: tree of the same structure and shapes.

    Returns:
        The new parameters, each in its own dtype.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.optim.apply_updates({"w": torch.ones(2)}, {"w": torch.tensor([-0.5, 0.5])})
        {'w': tensor([0.5000, 1.5000])}
    """
    return tree.map(lambda p, u: (p + u).to(p.dtype), params, updates)


def hyper_at(optimizer: Optimizer, step: Tensor | int = 0) -> dict[str, Tensor]:
    """Evaluate an optimizer's declared numbers at a step, for its `update`.

    Inside `tt.step` this is done from `State.hyper`; this is for loops written by hand.

    Args:
        optimizer: any optimizer.
        step: the number of updates done before; a tensor puts the numbers on its device.

    Returns:
        name -> 0-d float64 tensor, schedules evaluated.

    Example:
        >>> import torch, ttransfer as tt
        >>> opt = tt.optim.sgd(tt.schedules.linear(1.0, 0.0, 4))
        >>> params = {"w": torch.tensor([4.0])}
        >>> state = opt.init(params)
        >>> for t in range(2):
        ...     updates, state = opt.update({"w": params["w"]}, state, params, tt.optim.hyper_at(opt, t))
        ...     params = tt.optim.apply_updates(params, updates)
        >>> params["w"]
        tensor([0.])
        >>> tt.optim.hyper_at(opt, 1)["lr"]
        tensor(0.7500, dtype=torch.float64)
    """
    at = torch.as_tensor(step)
    own: dict[str, Tensor] = {}
    for name, value in optimizer.hyper.items():
        for entry, number in numbers(name, value).items():
            own[entry] = torch.tensor(number, dtype=torch.float64, device=at.device)
    return resolve(optimizer.hyper, own, at)
