"""Any module as an adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.core._functional import functional
from ttransfer.core._maps import Adapter
from ttransfer.core._types import Params

__all__ = ["module"]

_INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def module(module: nn.Module | Callable[[], nn.Module]) -> Adapter:
    """Adapter from a module: what a critic or a regressor of one's own becomes for a ready term.

    Its parameters carry their names in the module, in float32, or float64 where the feature is; all of them train,
    those that are frozen in the module stay as they are. Buffers are constants: what a forward writes into them is not
    kept. An adapter has no statistics and draws nothing, so that modules with batch normalisation or with dropout
    above 0 are refused; a net of its own in the step, read as "critic:fn", may have both.

    Args:
        module: a module, whose weights as they are now are the start (they are copied), or a function without
            arguments that makes one: each member of an ensemble then starts differently.

    Returns:
        An `Adapter` from what the module takes to what it gives.

    Raises:
        TransferError: for what is no module, for batch normalisation, running statistics, or dropout.

    Example:
        >>> import torch, ttransfer as tt
        >>> layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
        >>> critic = tt.adapters.module(layers)
        >>> params = critic.init(torch.Generator().manual_seed(0), torch.empty(8, 4, device="meta"))
        >>> sorted(params)
        ['0.bias', '0.weight', '2.bias', '2.weight']
        >>> critic.apply(params, torch.ones(8, 4)).shape
        torch.Size([8, 1])
        >>> term = tt.terms.dann("net(source).fc:in", "net(target).fc:in", critic=critic)
    """
    if not isinstance(module, nn.Module) and not callable(module):
        raise TransferError(f"module: wanted an nn.Module or a function that makes one, got {module!r}")
    net = functional(module)
    with torch.random.fork_rng(devices=[]):  # what a function draws here is not the caller's
        one = module if isinstance(module, nn.Module) else module()
    for name, child in one.named_modules():
        what = f"module: {(name or type(child).__name__)!r}"
        statistics = isinstance(child, _INSTANCE) and child.track_running_stats
        if statistics or isinstance(child, nn.modules.batchnorm._BatchNorm):
            raise TransferError(
                f"{what} is {type(child).__name__}, whose statistics an adapter cannot keep; take nn.LayerNorm or "
                "nn.GroupNorm, or make it a net of the step and read it as 'critic:fn'"
            )
    if net.layout.drops:
        raise TransferError(
            "module: it drops at random, which an adapter cannot; leave dropout out, or make it a net of the step and "
            "read it as 'critic:fn'"
        )
    forward = net.bind(training=True)
    start, buffers = net.init(torch.Generator())
    fixed = {name: x for name, x in start.items() if name in net.layout.frozen}
    del start

    def init(generator: torch.Generator, like: Tensor) -> Params:
        precise = like.dtype == torch.float64

        def placed(x: Tensor) -> Tensor:
            dtype = torch.float64 if precise and x.is_floating_point() else x.dtype
            return x.to(generator.device, dtype)

        return {name: placed(x) for name, x in net.init(generator)[0].items() if name not in fixed}

    def apply(params: Params, feature: Tensor) -> Tensor:
        def beside(x: Tensor) -> Tensor:
            return x.to(feature.device, feature.dtype if x.is_floating_point() else x.dtype)

        constants = {name: beside(x) for name, x in fixed.items()}
        own = {name: beside(x) for name, x in buffers.items()}
        value: Any = forward({**params, **constants}, own, feature).value
        return value

    return Adapter(init, apply)
