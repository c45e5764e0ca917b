"""Batch normalisation over the rows of all ranks.

The statistics of a batch are combined from each rank's mean, variance and count (Chan's formula, which does not cancel
as a sum of squares does). Their gradient comes back from all ranks: a collective in the backward pass.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn

from ttransfer.dist._channel import channel, register, unregister
from ttransfer.dist._ops import all_gather, all_reduce

__all__ = ["compiles", "synchronise"]


class _Gather(torch.autograd.Function):
    """Every rank's statistics; their gradients are summed over the ranks."""

    generate_vmap_rule = True

    @staticmethod
    def forward(own: Tensor, rank: int, size: int, group: str) -> Tensor:
        return all_gather(own[None], size, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.own = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Sum.apply(grads[0], *ctx.own), None, None, None


class _Sum(torch.autograd.Function):
    """This rank's part of what all ranks say of every rank: the transpose of `_Gather`, and the other way round."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grads: Tensor, rank: int, size: int, group: str) -> Tensor:
        return all_reduce([grads], group)[0][rank].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.own = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Gather.apply(grads[0], *ctx.own), None, None, None


def synchronise(net: nn.Module, group: str) -> list[str]:
    """Let the batch normalisation of a skeleton take its statistics from all ranks; return the modules' names."""
    to = channel(group)
    found: list[str] = []
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            cast(Any, module).forward = functools.partial(_forward, module, to.rank, to.size, group)
            found.append(name or type(module).__name__)
    return found


class _Alone:
    """The channel of a group of one."""

    rank, size, device = 0, 1, torch.device("cpu")

    def all_gather(self, out: Tensor, own: Tensor) -> None:
        out.copy_(own)

    def all_reduce(self, values: list[Tensor]) -> None:
        return None

    def reduce_scatter(self, out: Tensor, values: Tensor) -> None:
        out.copy_(values)

    def broadcast(self, value: Tensor, source: int) -> None:
        return None


@functools.cache
def compiles(members: bool) -> bool:
    """Try whether the compiler can trace an exchange in a backward pass; it depends on torch's version."""
    group = "ttransfer-alone"
    register(group, _Alone())

    def loss(x: Tensor) -> Tensor:
        return _Gather.apply(x, 0, 1, group).square().sum()

    one = torch.func.grad(loss)
    several = torch.func.vmap(one) if members else one
    try:
        torch.compile(several, backend="eager", fullgraph=True)(torch.ones(2, 2))
    except Exception:  # whatever the compiler raises, it cannot
        return False
    finally:
        unregister(group)
    return True


def _forward(module: Any, rank: int, size: int, group: str, x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = [0, *range(2, x.ndim)]
    count = wide.new_full((1,), x.numel() // x.shape[1])
    variance, mean = torch.var_mean(wide, axes, correction=0)
    found = _Gather.apply(torch.cat([mean, variance, count]), rank, size, group)
    means, variances, counts = found.split([x.shape[1], x.shape[1], 1], dim=1)
    share = counts / counts.sum()
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    if module.track_running_stats and module.training:
        _remember(module, mean.detach(), variance.detach(), counts.sum().detach())
    by = (variance + module.eps).rsqrt()
    if module.weight is not None:
        by = by * module.weight
    shape = (1, -1, *(1,) * (x.ndim - 2))
    out = (wide - mean.view(shape)) * by.view(shape)
    if module.bias is not None:
        out = out + module.bias.view(shape)
    return out.to(x.dtype)


def _remember(module: Any, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Move the running statistics, assigning new tensors: a transform's values are not written into old ones."""
    module.num_batches_tracked = module.num_batches_tracked + 1
    by = 1.0 / module.num_batches_tracked if module.momentum is None else module.momentum
    unbiased = variance * (count / (count - 1))
    for name, new in (("running_mean", mean), ("running_var", unbiased)):
        old = getattr(module, name)
        setattr(module, name, old + by * (new.to(old.dtype) - old))
