"""Small networks and batches, in float64 unless said."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = dict[str, dict[str, Tensor]]


class Conv(nn.Module):
    """Convolution, batch normalisation, dropout and a head."""

    def __init__(self, classes: int = 3, width: int = 4, p: float = 0.0) -> None:
        super().__init__()
        # No bias: before batch normalisation its gradient is rounding noise, which Adam turns into full steps.
        self.conv = nn.Conv2d(1, width, 3, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(p)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))


class Mlp(nn.Module):
    """Two layers, no normalisation."""

    def __init__(self, classes: int = 3, width: int = 6, p: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.Linear(5, width)
        self.drop = nn.Dropout(p)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(F.relu(self.hidden(x))))


def conv(seed: int, classes: int = 3, p: float = 0.0) -> Conv:
    torch.manual_seed(seed)
    return Conv(classes, p=p).double()


def mlp(seed: int, classes: int = 3, p: float = 0.0) -> Mlp:
    torch.manual_seed(seed)
    return Mlp(classes, p=p).double()


def images(seed: int, source: int = 6, target: int = 4, classes: int = 3) -> Batch:
    """Two domains of images of unequal size, the source labelled."""
    g = torch.Generator().manual_seed(seed)
    return {
        "source": {
            "x": torch.randn(source, 1, 6, 6, generator=g, dtype=torch.float64),
            "y": torch.randint(classes, (source,), generator=g),
        },
        "target": {"x": torch.randn(target, 1, 6, 6, generator=g, dtype=torch.float64) + 0.5},
    }


def vectors(seed: int, source: int = 6, target: int = 4, classes: int = 3) -> Batch:
    """Two domains of vectors of unequal size, the source labelled."""
    g = torch.Generator().manual_seed(seed)
    return {
        "source": {
            "x": torch.randn(source, 5, generator=g, dtype=torch.float64),
            "y": torch.randint(classes, (source,), generator=g),
        },
        "target": {"x": torch.randn(target, 5, generator=g, dtype=torch.float64) + 0.5},
    }
