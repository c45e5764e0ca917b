"""Critics of maps against `torch.nn`'s own layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from ttransfer._errors import TransferError
from ttransfer.adapters import mlp, patch, pooled


def sequential(dims: int, c: int, *channels: int, kernel: int, stride: int) -> nn.Sequential:
    torch.manual_seed(7)
    make: Any = nn.Conv2d if dims == 2 else nn.Conv3d
    layers: list[nn.Module] = []
    for into, out in pairwise((c, *channels, 1)):
        layers += [nn.LeakyReLU(0.2)] * bool(layers)
        layers.append(make(into, out, kernel, stride, (kernel - 1) // 2))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("channels", "kernel", "stride"), [((4, 5), 4, 2), ((), 3, 1), ((4,), 3, 1)])
def test_it_is_nn_sequential(dims: int, channels: tuple[int, ...], kernel: int, stride: int) -> None:
    shape = (2, 3, *[9, 8, 10][:dims])
    critic = patch(*channels, kernel=kernel, stride=stride)
    params = critic.init(torch.Generator().manual_seed(7), torch.empty(shape, device="meta"))
    layers = sequential(dims, 3, *channels, kernel=kernel, stride=stride)
    torch.testing.assert_close(params, dict(layers.state_dict()), rtol=0, atol=0)
    x = torch.randn(shape)
    torch.testing.assert_close(critic.apply(params, x), layers(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 3, 2, 3, 2)])
def test_pooled_looks_at_means(shape: tuple[int, ...]) -> None:
    x, inner = torch.randn(shape, dtype=torch.float64), mlp(5)
    means = x.mean(tuple(range(2, len(shape))))
    params = pooled(inner).init(torch.Generator().manual_seed(1), x)
    torch.testing.assert_close(params, inner.init(torch.Generator().manual_seed(1), means))
    assert torch.allclose(pooled(inner).apply(params, x), inner.apply(params, means), rtol=1e-12)


def test_what_they_refuse() -> None:
    with pytest.raises(TransferError, match=r"patch: wanted numbers of at least 1, got \(0,\), kernel=4, stride=2"):
        patch(0)
    with pytest.raises(TransferError, match=r"too small for 3 convolutions; take .*kernel=3, stride=1"):
        patch(4, 4).init(torch.Generator(), torch.empty(2, 3, 6, 6))
    with pytest.raises(TransferError, match=r"patch: wanted a map \(n, c, h, w\) or .*, got \(2, 3\) float32"):
        patch(4).init(torch.Generator(), torch.empty(2, 3))
    with pytest.raises(TransferError, match=r"pooled: wanted a map"):
        pooled(mlp(4)).init(torch.Generator(), torch.empty(2, 3))
    params = patch(4).init(torch.Generator(), torch.empty(2, 3, 8, 8))
    with pytest.raises(TransferError, match=r"patch: wanted c = 3, as at init, got \(2, 4, 8, 8\)"):
        patch(4).apply(params, torch.empty(2, 4, 8, 8))
