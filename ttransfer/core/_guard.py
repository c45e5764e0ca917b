"""The guard: an update that is not finite is not made."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer.core import _tree as tree
from ttransfer.core._types import State

__all__ = ["finite", "guarded"]


def finite(loss: Tensor, new: State) -> Tensor:
    """Whether the loss and the new parameters are finite: a sum is finite only if its parts are.

    Buffers are not asked: masks with infinities in them are common.
    """
    sums = [x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in tree.leaves(new.trainable)]
    sums = torch.stack([loss.to(torch.float64), *(x.to(torch.float64) for x in sums)])
    return torch.isfinite(sums).all()


def guarded(ok: Tensor, new: State, old: State) -> State:
    """Return the new state where it is finite, else the old one; member by member under vmap."""
    if ok.device.type == "cpu" and not torch.compiler.is_compiling():
        try:
            return new if bool(ok) else old  # a selection of every tensor took a third of an eager step
        except RuntimeError:  # under vmap each member has an answer of its own
            pass
    return tree.map(lambda a, b: b if a is b else torch.where(ok, a, b), new, old)
