"""How channels go through operations with weights: each network's groups, and whether they are interchangeable."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.channel_nets import moved
from ttransfer._errors import TransferError
from ttransfer.weights import channel_groups

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def free(net: nn.Module, x: Tensor = X) -> list[tuple[int, list[tuple[str, int, int]]]]:
    """Of each free group that can lose channels: how many there are, and where, with how many entries for each."""
    groups = channel_groups(moved(net), x)
    return [(g.size, [(a.name, a.axis, a.index.shape[1]) for a in g.axes]) for g in groups if g.removable]


def weights(net: nn.Module, x: Tensor = X) -> list[tuple[int, list[str]]]:
    return [
        (n, [f"{name.partition('.')[0]}:{axis}*{k}" for name, axis, k in axes if "weight" in name])
        for n, axes in free(net, x)
    ]


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)], [(4, ["0:0*1", "1:1*1"])]),
        ([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1)], [(4, ["0:0*1", "1:0*2", "2:1*2"])]),
        (
            [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 2, 1)],
            [(4, ["0:0*2", "1:1*1"]), (6, ["1:0*2", "2:1*2"])],
        ),
        (
            [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 5, 2), nn.Conv2d(5, 2, 1)],
            [(4, ["0:0*1", "1:0*1"]), (5, ["1:1*1", "2:1*1"])],
        ),
        (
            [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Conv2d(6, 2, 1)],
            [(2, ["0:0*2", "1:0*2"]), (3, ["1:1*1", "2:1*2"])],
        ),
        (
            [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 8, 2, groups=4), nn.Conv2d(8, 2, 1)],
            [(4, ["0:0*1", "1:0*1", "2:1*2"])],
        ),
        ([nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Conv2d(4, 2, 1)], [(4, ["0:0*1", "1:0*1", "2:1*1"])]),
        ([nn.Conv2d(3, 4, 3), nn.PReLU(), nn.Conv2d(4, 2, 1)], [(4, ["0:0*1", "2:1*1"])]),
        ([nn.Conv2d(3, 1, 3), nn.Flatten(), nn.Linear(36, 2)], [(1, ["0:0*1", "2:1*36"])]),
        ([nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.Conv2d(2, 2, 1)], [(2, ["0:0*4", "2:1*1"])]),
        (
            [nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 1)],
            [(4, ["1:0*1", "2:0*1", "3:1*1"])],
        ),
        (
            [nn.Unflatten(3, (4, 2)), nn.Conv3d(3, 4, 2), nn.InstanceNorm3d(4, affine=True), nn.Conv3d(4, 2, 1)],
            [(4, ["1:0*1", "2:0*1", "3:1*1"])],
        ),
    ],
)
def test_convolutions(layers: list[nn.Module], wanted: Any) -> None:
    assert weights(nn.Sequential(*layers)) == wanted


class Product(nn.Module):
    """A parameter that multiplies from the right, and one from the left."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.v @ (x[:, 0] @ self.w).relu().mT


def test_parameters_that_multiply() -> None:
    assert free(Product()) == [(5, [("w", 1, 1), ("v", 1, 1)])]


def test_a_linear_layer_whose_weight_is_turned_round() -> None:
    class Turned(Product):
        def forward(self, x: Tensor) -> Tensor:
            return self.v @ torch.addmm(self.b, x[0, 0], self.w).mT

    net = Turned()
    net.b = nn.Parameter(torch.randn(5))
    assert free(net) == [(5, [("w", 1, 1), ("v", 1, 1), ("b", 0, 1)])]


def test_embeddings() -> None:
    net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
    assert weights(net, torch.tensor([[1, 2, 3]])) == [(4, ["0:1*1", "1:1*1"])]


class Attend(nn.Module):
    """Attention written out, with scores that have a bias of each head, and norms of queries and keys."""

    def __init__(self, heads: int, *, bias: bool = False, norm: str = "") -> None:
        super().__init__()
        self.heads, self.norm = heads, norm
        self.q, self.k, self.v = nn.Linear(8, 4 * heads), nn.Linear(8, 4 * heads), nn.Linear(8, 4 * heads)
        self.out = nn.Linear(4 * heads, 2)
        self.bias = nn.Parameter(torch.randn(heads, 8, 8)) if bias else None
        self.scale = nn.Parameter(torch.rand(4) + 0.5) if norm == "shared" else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x[:, 0]).unflatten(-1, (self.heads, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.norm:
            q, k = (y / y.norm(dim=-1, keepdim=True) for y in (q, k))
        if self.scale is not None:
            q = q * self.scale
        scores = q @ k.mT / 2
        if self.bias is not None:
            scores = scores + self.bias
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [4, 3, 4]),
        ({"bias": True}, [3, 4, 4]),
        ({"norm": "each"}, [4, 3, 4]),
        ({"norm": "shared"}, [4, 3, 4]),  # one scale for the dimensions of all heads: these move together
    ],
)
def test_attention_written_out(options: dict[str, Any], wanted: list[int]) -> None:
    assert sorted(n for n, _ in free(Attend(3, **options))) == sorted(wanted)


def test_one_head_is_no_group() -> None:
    assert [n for n, _ in free(Attend(1))] == [4, 4]


class Cross(nn.Module):
    """Attention over another sequence, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(8, 6), nn.Linear(8, 12), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x[:, 0]).unflatten(-1, (2, 3)).transpose(1, 2)
        k, v = self.kv(x[:, 1, :5]).unflatten(-1, (2, 2, 3)).permute(2, 0, 3, 1, 4)
        mask = torch.ones(8, 5, dtype=torch.bool).tril()
        return self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


def test_attention_over_another_sequence() -> None:
    found = {n: [f"{name}*{k}" for name, _, k in axes if "weight" in name] for n, axes in free(Cross()) if n == 2}
    assert found == {2: ["q.weight*3", "kv.weight*6", "out.weight*3"]}
    assert sorted(n for n, _ in free(Cross())) == [2, 3, 3]


@pytest.mark.parametrize("heads", [1, 2])
def test_torchs_own_attention(heads: int) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.attend, self.head = (
                nn.Linear(8, 6),
                nn.MultiheadAttention(6, heads, batch_first=True),
                nn.Linear(6, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x[:, 0])
            return self.head(self.attend(x, x, x, need_weights=False)[0])

    sizes = sorted(n for n, _ in free(Own()))
    assert sizes == ([6, 6, 6, 6] if heads == 1 else [2, 3, 3, 6, 6])


class Refused(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.fc = how, nn.Conv2d(3, 8, 1), nn.Linear(8, 8)
        self.attend = nn.MultiheadAttention(8, 2, kdim=6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "weight":
            return F.conv2d(y, self.conv.weight.transpose(0, 1) * 2)
        if self.how == "groups":
            return F.conv2d(y, (self.fc.weight * 2).reshape(32, 2, 1, 1), groups=4)
        if self.how == "shared":
            y = y.flatten(2).mT.unflatten(1, (2, -1))
            return F.scaled_dot_product_attention(y, y[:, :1], y[:, :1], enable_gqa=True)
        if self.how == "vector":
            return y @ y[0, 0, 0]
        z = y.flatten(2).mT
        return self.attend(z, z[..., :6], z)[0]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("weight", "'conv2d' in the module itself is given a weight that is computed"),
        ("groups", "'conv2d' .* is given a weight that is computed"),
        ("shared", "'scaled_dot_product_attention' .* has heads that share keys"),
        ("vector", "'matmul' .* is given a vector"),
        ("own", "'multi_head_attention_forward' in 'attend' with separate projections"),
    ],
)
def test_what_cannot_be_followed_is_refused(how: str, message: str) -> None:
    with pytest.raises(TransferError, match=message):
        channel_groups(Refused(how), X.float())
