"""Nets with batch norms, away from their start."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T", bound=nn.Module)


def randomised(net: T, seed: int = 0) -> T:
    """In float64 and eval mode, with random numbers and statistics."""
    generator = torch.Generator().manual_seed(seed)
    for name, x in net.double().eval().state_dict().items():
        if x.is_floating_point():
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            x.copy_(noise.abs() + 0.3 if name.endswith("running_var") else noise)
    return net
