"""Whether groups are interchangeable, by trying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from ttransfer._errors import TransferError
from ttransfer.weights._groups import Group, permute_channels, told
from ttransfer.weights._tracing import tensors_in

__all__ = ["check_groups", "distance"]

_MANY = 65_537  # random numbers that are used over and over; a prime, so that no two channels get the same
_ROOM = 1e-6  # of the largest output; for modules that compute some of it in float32


def check_groups(module: nn.Module, inputs: tuple[Any, ...], groups: Sequence[Group]) -> None:
    """Run a module in float64 on random parameters and inputs, and again with all groups in random order.

    Args:
        module: is changed.
        inputs: of the module.
        groups: of its channels.

    Raises:
        TransferError: if the result is another, with the groups that make it so.
    """
    free = [number for number, group in enumerate(groups) if not group.fixed]
    if any(distance(module, inputs, groups, free)):
        wrong = [number for number in free if any(distance(module, inputs, groups, [number]))] or free
        raise TransferError(
            f"channel_groups: group {wrong[0]} ({told(groups[wrong[0]])}) is not interchangeable: what the module "
            "computes depends on the order of its channels in a way that was not seen"
        )


def distance(module: nn.Module, inputs: tuple[Any, ...], groups: Sequence[Group], numbers: Sequence[int]) -> list[bool]:
    """For each output: whether it is another once these groups are in random order."""
    generator = torch.Generator().manual_seed(0)
    numbers_at_hand = torch.randn(_MANY, generator=generator, dtype=torch.float64)
    module = module.double().eval()
    state = {name: x.detach() for name, x in module.state_dict().items()}
    seen: dict[int, Tensor] = {}
    for name, x in module.state_dict(keep_vars=True).items():
        if id(x) not in seen:
            seen[id(x)] = _moved(x.detach(), numbers_at_hand)
        state[name] = seen[id(x)]
    orders = {number: torch.randperm(groups[number].size, generator=generator) for number in numbers}
    there = permute_channels(groups, orders).apply(state, {})
    noise = tree_map(lambda x: _noise(x, generator), inputs)
    # What a module cannot take as noise, it takes as it was given.
    for given in (noise, tree_map(_wide, inputs)):
        with torch.no_grad():
            outs = [tensors_in(functional_call(module, one, given)) for one in (state, there)]
        if all(bool(x.isfinite().all()) for some in outs for x in some):
            break
    return [
        bool((a - b).abs().max() > _ROOM * a.abs().max().clamp_min(1e-12))
        for a, b in zip(*outs, strict=True)
        if a.is_floating_point() and a.numel()
    ]


def _moved(x: Tensor, noise: Tensor) -> Tensor:
    """A parameter with noise, so that none is like another; what is positive stays so."""
    if not x.is_floating_point():
        return x
    spread = x.std() if x.numel() > 1 else x.new_zeros(())
    by = torch.where(spread > 0, spread, 0.1) * 0.5
    noise = noise.repeat(x.numel() // _MANY + 1)[: x.numel()].reshape(x.shape).to(x)
    return x + (noise.abs() if bool((x >= 0).all()) else noise) * by


def _wide(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _noise(x: Any, generator: torch.Generator) -> Any:
    if isinstance(x, Tensor) and x.is_floating_point():
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    return x
