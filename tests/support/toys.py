"""What the tests of the loop run: a real step on two domains, and a toy whose numbers can be read."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from ttransfer.core import _tree as tree
from ttransfer.run import domains, loader

NAN = math.nan


def data(seed: int = 0) -> Any:
    g = torch.Generator().manual_seed(7)

    def one(rows: int, size: int) -> Any:
        return loader({"x": torch.randn(rows, 4, generator=g), "y": torch.arange(rows) % 3}, batch_size=size)

    return domains(seed=seed, source=one(22, 4), target=one(13, 5))


def real() -> tt.Step:
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3)
    )
    return tt.step(
        {"net": tt.functional(net)},
        tt.optim.adamw(tt.schedules.cosine(1e-2, 30)),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
        square=tt.term(lambda z: z.square().mean(), "net(target)", weight=0.1),
    )


def toy_state(members: int = 0) -> tt.State:
    shape = (members,) if members else ()
    w = torch.zeros(shape, dtype=torch.float64)
    return tt.State(
        {"net": {"w": w}}, {}, {}, {}, (), {}, {}, torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    )


def toy(state: tt.State, batch: tt.Batch) -> tuple[tt.State, dict[str, Tensor]]:
    """Sum up what the batches hold; refuse what is not finite, member by member."""
    w, x = state.trainable["net"]["w"], batch["source"]["x"].sum(-1)
    finite = torch.isfinite(x).expand(w.shape)
    logs = {
        "loss": (x * x).expand(w.shape),
        "task": x.expand(w.shape),
        "optim.lr": torch.ones_like(w),
        "finite": finite,
    }
    step = state.step + finite.to(torch.int64)
    return state._replace(trainable={"net": {"w": torch.where(finite, w + x, w)}}, step=step), logs


def ones(count: int = 5) -> list[Any]:
    return [{"source": {"x": torch.full((1,), float(i + 1), dtype=torch.float64)}} for i in range(count)]


def same(a: Any, b: Any) -> bool:
    pairs = zip(tree.paths(a).items(), tree.paths(b).items(), strict=True)
    return all(k == m and x.dtype == y.dtype and torch.equal(x, y) for (k, x), (m, y) in pairs)
