"""Entropic optimal transport between two batches, in logarithms, by a fixed number of iterations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["dual_value", "plan", "potentials"]


def potentials(
    cost: Tensor, epsilon: Tensor | float, iterations: int, *, together: bool = True
) -> tuple[Tensor, Tensor]:
    """The dual potentials of transport between uniform weights: cost (n, m) -> (n,), (m,); without gradient.

    The temperature falls from the largest cost to epsilon by a constant factor in the first quarter of the iterations:
    at a small one from the start, each iteration would move the potentials by little more than epsilon.

    Args:
        cost: of moving row i to row j.
        epsilon: the temperature, above 0, in the cost's units.
        iterations: how many.
        together: move both half-way at a time, which treats them alike, rather than in turn, which comes near to the
            best ones in half as many iterations.
    """
    fixed = epsilon.detach().to(cost.dtype) if isinstance(epsilon, Tensor) else torch.full_like(cost[0, 0], epsilon)
    return _potentials(cost.detach(), fixed.detach(), iterations, together)


def dual_value(cost: Tensor, f: Tensor, g: Tensor, epsilon: Tensor | float) -> Tensor:
    """The dual of entropic transport at these potentials; at the best ones it is the cost, and so is its gradient.

    By the envelope theorem, as potentials that are best may be held constant.
    """
    mass = ((f[:, None] + g - cost) / epsilon).exp().mean()
    return f.mean() + g.mean() - epsilon * (mass - 1)


def plan(cost: Tensor, epsilon: Tensor | float, iterations: int) -> Tensor:
    """The plan of entropic transport between uniform weights, (n, m), whose sum is 1; without gradient.

    Every column has its mass of 1/m whatever the iterations, a row nearly so.
    """
    cost = cost.detach()
    epsilon = epsilon.detach() if isinstance(epsilon, Tensor) else epsilon
    f, g = potentials(cost, epsilon, iterations, together=False)
    return (((f[:, None] + g - cost) / epsilon).exp() / cost.numel()).to(cost.dtype)


# One operation of a graph: unrolled, fifty iterations took minutes to compile. It has no gradient, and needs none.
@torch.library.custom_op("ttransfer::transport_potentials", mutates_args=())
def _potentials(cost: Tensor, epsilon: Tensor, iterations: int, together: bool) -> tuple[Tensor, Tensor]:
    """Run Sinkhorn's iterations.

    Args:
        cost: (..., n, m).
        epsilon: (...).
        iterations: how many.
        together: as in `potentials`.
    """
    epsilon = epsilon[..., None]
    start = torch.maximum((cost.amax((-2, -1)) - cost.amin((-2, -1)))[..., None], epsilon)
    cooling = max(iterations // 4, 1)
    f, g = torch.zeros_like(cost[..., 0]), torch.zeros_like(cost[..., 0, :])
    for i in range(1, iterations + 1):
        temperature = start * (epsilon / start) ** min(i / cooling, 1.0)
        new = _softmin(cost, g, temperature)
        if together:
            f, g = (f + new) / 2, (g + _softmin(cost.mT, f, temperature)) / 2
        else:
            f, g = new, _softmin(cost.mT, new, temperature)
    return f.contiguous(), g.contiguous()


def _softmin(cost: Tensor, g: Tensor, temperature: Tensor) -> Tensor:
    scaled = (g[..., None, :] - cost) / temperature[..., None]
    return -temperature * (scaled.logsumexp(-1) - math.log(cost.shape[-1]))


@_potentials.register_fake
def _(cost: Tensor, epsilon: Tensor, iterations: int, together: bool) -> tuple[Tensor, Tensor]:
    return cost.new_empty(cost.shape[:-1]), cost.new_empty((*cost.shape[:-2], cost.shape[-1]))


def _of_members(info: Any, dims: Any, cost: Tensor, epsilon: Tensor, iterations: int, together: bool) -> Any:
    members = info.batch_size
    costs, heats = (
        x.expand(members, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip((cost, epsilon), dims[:2], strict=True)
    )
    return _potentials(costs, heats, iterations, together), (0, 0)


_potentials.register_vmap(_of_members)
