"""Small networks in which channels meet in the ways that they do, for channel groups and what is made of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttransfer._errors import TransferError
from ttransfer.weights import channel_groups

__all__ = ["IMAGE", "NETS", "Block", "cnn", "moved", "refuses_what_is_not_finite", "resnet", "vit", "with_state"]


class Flat(nn.Module):
    """Convolutions with batch norm, flattened into a linear layer."""

    def __init__(self, width: int = 6, wide: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, wide, 3, bias=False), nn.BatchNorm2d(wide)
        self.hidden, self.head = nn.Linear(wide * 4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.relu_(self.bn2(self.conv2(x)))
        return self.head(torch.tanh(self.hidden(x.flatten(1))))


class Residual(nn.Module):
    """Two residual branches, one of them depthwise with squeeze and excitation."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.expand, self.bn = nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.down, self.up = nn.Conv2d(2 * width, 3, 1), nn.Conv2d(3, 2 * width, 1)
        self.project, self.head = nn.Conv2d(2 * width, width, 1), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.branch(F.silu(x))
        y = self.depthwise(F.relu6(self.bn(self.expand(x))))
        y = y * torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3), keepdim=True)))))
        x += self.project(y)
        return self.head(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1))


class Dense(nn.Module):
    """Concatenation, and halves of which one is a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.norm, self.c, self.d = nn.BatchNorm2d(10), nn.Conv2d(10, 8, 1), nn.Conv2d(14, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        ab = self.norm(torch.cat([a, self.b(a.relu())], 1))
        value, gate = self.c(ab).chunk(2, 1)
        x = self.d(torch.cat([ab, value * gate.sigmoid()], 1))
        return self.head(x.amax((-2, -1)))


class Grouped(nn.Module):
    """Grouped and transposed convolutions, group norm, a sum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.group = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=4)
        self.norm, self.b = nn.GroupNorm(4, 12), nn.Conv2d(12, 6, 1)
        self.up, self.one = nn.ConvTranspose2d(6, 5, 2, stride=2), nn.GroupNorm(1, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.group(self.a(x))))
        x = self.one(self.up(self.b(x).relu()))
        x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-3)
        return self.head(F.pad(x, (1, 1, 1, 1)).mean((2, 3)))


class Block(nn.Module):
    """A transformer block with queries, keys and values in one matrix."""

    def __init__(self, width: int, heads: int, hidden: int, inner: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * heads * inner)
        self.proj, self.gamma = nn.Linear(heads * inner, width), nn.Parameter(torch.full((width,), 0.5))
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        x = x + self.gamma * self.proj(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    """A transformer on patches, with a class token and positions."""

    def __init__(self, width: int = 12, heads: int = 3, hidden: int = 10, depth: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Torch(nn.Module):
    """torch's own attention, an embedding, and the head tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 10, batch_first=True)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.tokens(x)))


class Mixer(nn.Module):
    """Linear layers along tokens, and along channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(3, 6), nn.LayerNorm(6)
        self.tokens1, self.tokens2 = nn.Linear(4, 5), nn.Linear(5, 4)
        self.up, self.down, self.head = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.tokens2(F.gelu(self.tokens1(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


def cnn(seed: int = 0, width: int = 6, wide: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return moved(Flat(width, wide))


def resnet(seed: int = 0, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return moved(Residual(width))


def vit(seed: int = 0, width: int = 12, heads: int = 3, hidden: int = 10, depth: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return moved(Vit(width, heads, hidden, depth))


def moved(net: nn.Module) -> nn.Module:
    """In float64 and eval mode, with statistics and scales that differ."""
    net = net.double().eval()
    with torch.no_grad():
        for name, x in net.named_buffers():
            if x.is_floating_point():
                x.copy_(torch.rand_like(x) + 0.5 if "var" in name else torch.randn_like(x))
        for x in net.parameters():
            if x.ndim == 1:
                x.add_(0.3 * torch.randn_like(x))
    return net


def with_state(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The module with tensors of other shapes."""
    new = copy.deepcopy(net)
    for name, x in state.items():
        path, _, leaf = name.rpartition(".")
        module = new.get_submodule(path)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(x, x.is_floating_point())
        else:
            module._buffers[leaf] = x
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.groups = len(x)
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(x.shape)
    return new


IMAGE = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "flat": (Flat, IMAGE),
    "residual": (Residual, IMAGE),
    "dense": (Dense, IMAGE),
    "grouped": (Grouped, IMAGE),
    "vit": (Vit, IMAGE),
    "torch": (Torch, torch.tensor([[1, 2, 5], [0, 6, 3]])),
    "mixer": (Mixer, IMAGE[:, :, :4, 0].transpose(1, 2).contiguous()),
}


def refuses_what_is_not_finite(matching: Callable[..., object], wrong: float) -> None:
    """A matching names the tensor of either net that is not finite."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    groups = channel_groups(net, torch.ones(1, 2))
    a = {name: x.detach().clone() for name, x in net.state_dict().items()}
    b = {name: x.clone() for name, x in a.items()}
    b["2.weight"][0, 1] = wrong
    told = rf"{matching.__name__}: '2.weight' \(1, 3\) float\d\d has NaN or infinite entries"
    for pair in ((a, b), (b, a)):
        with pytest.raises(TransferError, match=told):
            matching(*pair, groups)
