"""The training that all contestants do: two networks, the numbers they share, and our step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt

Batch = dict[str, dict[str, Tensor]]

TEMPERATURE, KD_WEIGHT = 4.0, 0.5
DANN_WEIGHT, CRITIC_WIDTH = 0.3, 64
PEAK, WEIGHT_DECAY = 1e-3, 0.05
HORIZON, RAMP = 1000, 20  # of the cosine and of the ramp, in steps
BETAS, EPS = (0.9, 0.999), 1e-8
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, wide: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.around = nn.Sequential()
        if stride > 1 or wide != out:
            self.around = nn.Sequential(nn.Conv2d(wide, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.around(x))


class Residual(nn.Module):
    """A residual network with one block for each width; with widths 64 to 512 it is half of ResNet-18."""

    def __init__(self, channels: int, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(channels, widths[0], 3, 2, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        before = widths[0]
        for i, width in enumerate(widths):
            layers.append(Block(before, width, 2 if i else 1))
            before = width
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(before, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Plain(nn.Module):
    """Three convolutions with batch normalisation."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b, stride in ((channels, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)):
            # No bias: before batch normalisation its gradient is rounding noise, which Adam turns into full steps.
            layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(4 * width, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Case(NamedTuple):
    """One training problem: a student and a teacher of one kind, `rows` images of each domain in a step."""

    name: str
    make: Callable[[], Plain | Residual]
    rows: int
    shape: tuple[int, int, int]
    classes: int


CASES = {
    case.name: case
    for case in (
        Case("cnn", lambda: Plain(1, 16, 10), 64, (1, 16, 16), 10),
        Case("resnet10", lambda: Residual(3, (64, 128, 256, 512), 10), 32, (3, 32, 32), 10),
    )
}


def net(case: Case, seed: int, dtype: torch.dtype = torch.float32) -> Plain | Residual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return case.make().to(dtype)


def batch_of(case: Case, seed: int, rows: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    g = torch.Generator().manual_seed(seed)
    rows = rows or case.rows
    return {
        "source": {
            "x": torch.randn(rows, *case.shape, generator=g).to(dtype),
            "y": torch.randint(case.classes, (rows,), generator=g),
        },
        "target": {"x": torch.randn(rows, *case.shape, generator=g).to(dtype) + 0.5},
    }


def ramp_at(i: int) -> float:
    return math.tanh(5 * min(i / RAMP, 1))


def our_step(case: Case, dtype: torch.dtype = torch.float32, guard: bool = True) -> tt.Step:
    ramp = tt.schedules.ramp(RAMP)
    # Factories, so that no copy of the weights lives outside the state: memory is measured.
    made = {"student": functools.partial(net, case, 1, dtype), "teacher": functools.partial(net, case, 2, dtype)}
    return tt.step(
        {name: tt.functional(factory) for name, factory in made.items()},
        tt.optim.adamw(tt.schedules.cosine(PEAK, HORIZON), weight_decay=WEIGHT_DECAY),
        trainable=("student",),
        guard=guard,
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=TEMPERATURE, weight=KD_WEIGHT),
        mmd=tt.term(tt.align.mmd, "student(source).fc:in", "student(target).fc:in", weight=ramp),
        dann=tt.terms.dann(
            "student(source).fc:in",
            "student(target).fc:in",
            critic=tt.adapters.mlp(CRITIC_WIDTH),
            scale=ramp,
            weight=DANN_WEIGHT,
        ),
    )


def critic_start(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The critic that our step begins with, for the others to begin with too."""
    return our_step(case, dtype).init(batch_of(case, 0, dtype=dtype)).trainable["terms"]["dann"]
