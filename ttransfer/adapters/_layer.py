"""What adapters share: how a layer of torch starts, and what is no map."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError, shown
from ttransfer.core._types import Params

__all__ = ["start_layer", "want_map"]


def start_layer(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype, bias: bool = True) -> Params:
    """Draw a layer as `nn.Linear` and `nn.Conv2d` do: weight, then bias, uniform in ±1/√(inputs of an output).

    Args:
        generator: drawn from; the parameters are on its device.
        shape: of the weight, outputs first.
        dtype: of the feature; the layer is in float32, or float64 where that is.
        bias: whether there is one.
    """
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.empty(shape, dtype=dtype, device=generator.device)
    params = {"weight": nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)}
    if bias:
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        params["bias"] = weight.new_empty(shape[0]).uniform_(-bound, bound, generator=generator)
    return params


def want_map(called: str, x: Tensor, channels: int | None = None) -> None:
    """Refuse what is no floating map (n, c, h, w), or has other channels than at init."""
    if x.ndim != 4 or x.shape[1] == 0 or not x.is_floating_point():
        raise TransferError(f"{called}: wanted a map (n, c, h, w) of floating numbers, got {shown(x)}")
    if channels is not None and x.shape[1] != channels:
        raise TransferError(f"{called}: wanted c = {channels}, as at init, got {shown(x)}")
