"""Convolutions against `torch.nn`'s own layers, which draw the same numbers from the same seed."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from ttransfer._errors import TransferError
from ttransfer.adapters import conv


def sequential(c: int, *channels: int, kernel: int, bias: bool) -> nn.Sequential:
    torch.manual_seed(7)
    layers: list[nn.Module] = []
    for into, out in pairwise((c, *channels)):
        layers += [nn.ReLU()] * bool(layers) + [nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=bias)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [(6,), (6, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_nn_sequential(channels: tuple[int, ...], kernel: int, bias: bool, dtype: torch.dtype) -> None:
    adapter = conv(*channels, kernel=kernel, bias=bias)
    params = adapter.init(torch.Generator().manual_seed(7), torch.empty(2, 3, 5, 4, device="meta", dtype=dtype))
    torch.set_default_dtype(dtype)
    try:
        layers = sequential(3, *channels, kernel=kernel, bias=bias)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(params, dict(layers.state_dict()), rtol=0, atol=0)
    x = torch.randn(2, 3, 5, 4, dtype=dtype)
    torch.testing.assert_close(adapter.apply(params, x), layers(x), rtol=1e-5, atol=1e-6)


def test_what_it_refuses() -> None:
    with pytest.raises(TransferError, match=r"conv: wanted numbers of channels of at least 1, got \(\)"):
        conv()
    with pytest.raises(TransferError, match="odd kernel, which has a middle, got 2"):
        conv(3, kernel=2)
    adapter = conv(3)
    with pytest.raises(TransferError, match=r"conv: wanted a map \(n, c, h, w\) .*, got \(2, 3\) float32"):
        adapter.init(torch.Generator(), torch.empty(2, 3))
    params = adapter.init(torch.Generator(), torch.empty(2, 3, 5, 5))
    with pytest.raises(TransferError, match=r"wanted c = 3, as at init, got \(2, 4, 5, 5\)"):
        adapter.apply(params, torch.empty(2, 4, 5, 5))
