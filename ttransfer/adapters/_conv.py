"""Convolutions over maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.adapters._layer import start_layer, want_map
from ttransfer.core._maps import Adapter
from ttransfer.core._types import Params

__all__ = ["conv"]


def conv(*channels: int, kernel: int = 1, bias: bool = True) -> Adapter:
    """Convolutions that keep height and width, with ReLU between them: by default one of 1 x 1, a regressor of maps.

    ``conv(64)`` brings a student's map to a teacher's 64 channels; ``conv(64, 64, kernel=3)`` is a generator of masked
    maps. The parameters carry the names that `nn.Sequential(nn.Conv2d(...), nn.ReLU(), nn.Conv2d(...))` gives them
    ("0.weight", "0.bias", "2.weight", ...), and start as those layers do, from the generator given.

    Args:
        channels: what each convolution gives; the last is the result's.
        kernel: odd width of all of them; the edge is filled with zeros.
        bias: whether they have one.

    Returns:
        An `Adapter` from maps (n, c, h, w) to maps (n, channels[-1], h, w).

    Raises:
        TransferError: for no channels, channels below 1, or an even kernel; at init and apply, for what is no map or
            has another number of channels.

    Example:
        >>> import torch, ttransfer as tt
        >>> regressor = tt.adapters.conv(8)
        >>> params = regressor.init(torch.Generator().manual_seed(0), torch.empty(2, 3, 5, 5, device="meta"))
        >>> {name: tuple(p.shape) for name, p in params.items()}
        {'0.weight': (8, 3, 1, 1), '0.bias': (8,)}
        >>> regressor.apply(params, torch.ones(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """
    if not channels or min(channels) < 1:
        raise TransferError(f"conv: wanted numbers of channels of at least 1, got {channels}")
    if kernel < 1 or kernel % 2 == 0:
        raise TransferError(f"conv: wanted an odd kernel, which has a middle, got {kernel}")

    def init(generator: torch.Generator, like: Tensor) -> Params:
        want_map("conv", like)
        params: Params = {}
        for i, (into, out) in enumerate(zip((like.shape[1], *channels), channels, strict=False)):
            layer = start_layer(generator, (out, into, kernel, kernel), like.dtype, bias)
            params.update({f"{2 * i}.{name}": value for name, value in layer.items()})
        return params

    def apply(params: Params, feature: Tensor) -> Tensor:
        want_map("conv", feature, params["0.weight"].shape[1])
        for i in range(len(channels)):
            if i:
                feature = feature.relu()
            feature = F.conv2d(feature, params[f"{2 * i}.weight"], params.get(f"{2 * i}.bias"), padding=kernel // 2)
        return feature

    return Adapter(init, apply)
