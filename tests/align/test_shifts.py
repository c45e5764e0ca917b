"""What each alignment is for: a planted shift of the target, which a map of it trained on the loss alone lowers.

A row of `LOWERED` says that after some steps at most half of a shift is left by that shift's own measure; a row of
`KEPT` that the loss does not see the shift. A loss gets the batch and the target as mapped so far.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ttransfer import align, losses

ROWS, WIDTH, STEPS = 96, 4, 80
LINES = torch.randn(WIDTH, 32, generator=torch.Generator().manual_seed(5))


class Batch(NamedTuple):
    """Two domains with classes 0 and 1, which only some losses look at; those of the target are known to them."""

    source: Tensor
    target: Tensor
    source_labels: Tensor
    target_labels: Tensor

    @property
    def sure(self) -> Tensor:
        """Logits of the target's classes."""
        return 20.0 * torch.eye(2)[self.target_labels]


Measure = Callable[[Batch, Tensor], Tensor]
Loss = Callable[[Batch, Tensor], Tensor]


class Shift(NamedTuple):
    """How a target is made of rows like the source's, and how far it is from the source."""

    make: Callable[[Tensor], Tensor]
    measure: Measure


def means(x: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([x[labels == c].mean(0) for c in (0, 1)])


def spread(x: Tensor, n: int) -> Tensor:
    """The first principal directions, without taking off the mean."""
    return torch.linalg.svd(x, full_matrices=False)[2][:n]


def turned(x: Tensor) -> Tensor:
    """The two directions in which the classes lie, turned towards the two in which nothing does."""
    c, s = math.cos(1.0), math.sin(1.0)
    turn = torch.eye(WIDTH) * c
    turn[0, 2] = turn[1, 3] = s
    turn[2, 0] = turn[3, 1] = -s
    return x @ turn


def paired(x: Tensor) -> Tensor:
    """The last two directions, alike and independent, made to go together; each by itself stays as it is."""
    return torch.cat([x[:, :3], 0.9 * x[:, 2:3] + math.sqrt(1 - 0.9**2) * x[:, 3:]], 1)


def outside(batch: Batch, moved: Tensor) -> Tensor:
    inner = spread(batch.source, 2) @ spread(moved, 2).T
    return (1 - torch.linalg.svdvals(inner).clamp_max(1) ** 2).sqrt().sum()


def unsure(batch: Batch, moved: Tensor) -> Tensor:
    p = moved.softmax(1)
    return -(p * p.clamp_min(1e-30).log()).sum(1).mean()


def one_sided(batch: Batch, moved: Tensor) -> Tensor:
    p = moved.softmax(1).mean(0)
    return math.log(WIDTH) + (p * p.clamp_min(1e-30).log()).sum()


SHIFTS = {
    "mean": Shift(lambda x: x + 1.5, lambda b, moved: (b.source.mean(0) - moved.mean(0)).norm()),
    "covariance": Shift(
        lambda x: (x - x.mean(0)) * torch.tensor([2.5, 1.0, 2.0, 0.4]) + x.mean(0),
        lambda b, moved: (b.source.T.cov() - moved.T.cov()).norm(),
    ),
    "correlation": Shift(paired, lambda b, moved: (b.source.T.cov() - moved.T.cov())[2, 3].abs()),
    "classes exchanged": Shift(
        lambda x: x * torch.tensor([-1.0, 1.0, 1.0, 1.0]),
        lambda b, moved: (means(b.source, b.source_labels) - means(moved, b.target_labels)).norm(),
    ),
    "span": Shift(turned, outside),
    "short": Shift(lambda x: x / 4, lambda b, moved: 1 / moved.norm(dim=1).mean()),
    "one direction": Shift(
        lambda x: x * torch.tensor([4.0, 1.0, 1.0, 1.0]), lambda b, moved: torch.linalg.svdvals(moved)[0] ** 2
    ),
    "unsure": Shift(lambda x: x / 2, unsure),
    "one-sided": Shift(lambda x: x / 2 + torch.tensor([3.0, 0.0, 0.0, 0.0]), one_sided),
}


def of_domains(fn: Callable[..., Tensor]) -> Loss:
    return lambda b, moved: fn(b.source, moved)


def of_target(fn: Callable[..., Tensor]) -> Loss:
    return lambda b, moved: fn(moved)


def layers(x: Tensor) -> list[Tensor]:
    return [x[:, :2], x[:, 2:]]


LOSSES: dict[str, Loss] = {
    "mmd": of_domains(align.mmd),
    "mmd by median": of_domains(functools.partial(align.mmd, bandwidth=align.median_bandwidth)),
    "mmd in chunks": of_domains(functools.partial(align.mmd, chunk=32)),
    "mmd_unbiased": of_domains(align.mmd_unbiased),
    "mmd_linear": of_domains(align.mmd_linear),
    "jmmd": lambda b, moved: align.jmmd(layers(b.source), layers(moved)),
    "jmmd_unbiased": lambda b, moved: align.jmmd_unbiased(layers(b.source), layers(moved)),
    "coral": of_domains(align.coral),
    "coral_mean": of_domains(align.coral_mean),
    "homm": of_domains(align.homm),
    "homm, order 1": of_domains(functools.partial(align.homm, order=1)),
    "homm as in code": of_domains(functools.partial(align.homm, variant="code", order=4)),
    "cmd": of_domains(functools.partial(align.cmd, span=8.0)),
    "energy_distance": of_domains(align.energy_distance),
    "sinkhorn_divergence": of_domains(functools.partial(align.sinkhorn_divergence, iterations=20)),
    "sliced_wasserstein": lambda b, moved: align.sliced_wasserstein(b.source, moved, LINES),
    "deepjdot": lambda b, moved: align.deepjdot(
        b.source, moved, b.source_labels, b.sure, feature_weight=1.0, label_weight=10.0, iterations=20
    ),
    "lmmd": lambda b, moved: align.lmmd(b.source, moved, b.source_labels, b.sure),
    "cdd": lambda b, moved: align.cdd(b.source, moved, b.source_labels, b.target_labels),
    "cdd as in code": lambda b, moved: align.cdd(
        b.source, moved, b.source_labels, b.target_labels, classes=2, variant="code"
    ),
    # Two rows have a plane: the means of the classes.
    "rsd": lambda b, moved: align.rsd(means(b.source, b.source_labels), means(moved, b.target_labels)),
    "bsp": of_target(align.bsp),
    "afn": of_target(align.afn),
    "afn_hard": of_target(functools.partial(align.afn_hard, radius=3.0)),
    "bnm": of_target(align.bnm),
    "mcc": of_target(align.mcc),
    "entropy": of_target(losses.entropy),
    "diversity": of_target(align.diversity),
    "infomax": of_target(align.infomax),
}


LOWERED: list[tuple[str, str]] = [
    *(("mean", name) for name in ("mmd", "mmd by median", "mmd in chunks", "mmd_unbiased", "mmd_linear", "jmmd")),
    *(("mean", name) for name in ("jmmd_unbiased", "coral_mean", "energy_distance", "sinkhorn_divergence")),
    *(("mean", name) for name in ("sliced_wasserstein", "deepjdot", "lmmd", "homm", "homm, order 1", "cmd")),
    *(("covariance", name) for name in ("mmd", "jmmd", "coral", "coral_mean", "energy_distance")),
    *(("covariance", name) for name in ("sinkhorn_divergence", "sliced_wasserstein", "homm as in code", "cmd")),
    *(("correlation", name) for name in ("coral", "homm as in code")),
    *(("classes exchanged", name) for name in ("lmmd", "cdd", "cdd as in code", "deepjdot")),
    ("span", "rsd"),
    ("one direction", "bsp"),
    *(("short", name) for name in ("afn", "afn_hard")),
    *(("unsure", name) for name in ("entropy", "infomax", "bnm", "mcc")),
    *(("one-sided", name) for name in ("diversity", "infomax")),
]
KEPT: list[tuple[str, str]] = [
    *(("mean", name) for name in ("coral", "homm as in code")),  # they take the means off
    ("covariance", "homm, order 1"),
    ("correlation", "cmd"),  # it looks at each feature by itself
    ("mean", "afn"),
    *(("classes exchanged", name) for name in ("mmd", "coral_mean", "energy_distance", "sinkhorn_divergence", "cmd")),
    ("unsure", "diversity"),  # all alike, each row too
    ("one-sided", "entropy"),  # the surest of all is one class for all
]


def left(shift: Shift, loss: Loss) -> float:
    """Train an affine map of the target from the identity; return the part of the shift that is left."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[2.0, 0.5, 0.0, 0.0], [-2.0, 0.5, 0.0, 0.0]])
    y, z = (torch.randperm(ROWS, generator=generator) % 2 for _ in range(2))
    source, fresh = (centres[labels] + 0.7 * torch.randn(ROWS, WIDTH, generator=generator) for labels in (y, z))
    batch = Batch(source, shift.make(fresh), y, z)
    matrix, offset = torch.eye(WIDTH, requires_grad=True), torch.zeros(WIDTH, requires_grad=True)
    optimizer = torch.optim.Adam([matrix, offset], lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(batch, batch.target @ matrix + offset).backward()
        optimizer.step()
    moved = (batch.target @ matrix + offset).detach()
    return (shift.measure(batch, moved) / shift.measure(batch, batch.target)).item()


@pytest.mark.parametrize(("shift", "loss"), LOWERED)
def test_lowered(shift: str, loss: str) -> None:
    assert left(SHIFTS[shift], LOSSES[loss]) < 0.5


@pytest.mark.parametrize(("shift", "loss"), KEPT)
def test_kept(shift: str, loss: str) -> None:
    assert left(SHIFTS[shift], LOSSES[loss]) > 0.8
