"""The context of a GcBlock against the layers that it is made of elsewhere, and in a step of FGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.adapters._gc_block import gc_block
from ttransfer.losses._fgd import fgd_global
from ttransfer.testing import adapter_trial, parametrize_with_checks


def slow(params: dict[str, Tensor], feature: Tensor) -> Tensor:
    """As FGD's code has it: 1 x 1 convolutions on a pooled map of one position."""
    n, c = feature.shape[:2]
    middle = len(params["0.bias"])
    layers = nn.Sequential(
        nn.Conv2d(c, middle, 1), nn.LayerNorm([middle, 1, 1]), nn.ReLU(), nn.Conv2d(middle, c, 1)
    ).to(feature.dtype)
    with_axes = {
        name: w.reshape(layers.state_dict()[name].shape) for name, w in params.items() if not name.startswith("mask")
    }
    rows = []
    for x in feature:
        scores = (params["mask.weight"][0][:, None, None] * x).sum(0)
        rows.append((x * scores.flatten().softmax(0).view(scores.shape)).sum((1, 2)))
    pooled = torch.stack(rows)[:, :, None, None]
    return torch.func.functional_call(layers, with_axes, pooled).view(n, c)


TRIALS = (adapter_trial(gc_block(), torch.empty(2, 4, 3, 2), identity=False, reference=slow, name="gc_block"),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_both_blocks_learn_in_a_step() -> None:
    def net(seed: int) -> Any:
        torch.manual_seed(seed)
        return tt.functional(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()))

    student, teacher = "student(images).0", "teacher(images).0"
    step = tt.step(
        {"student": net(0), "teacher": net(1)},
        tt.optim.adam(0.01),
        trainable=("student",),
        contexts=tt.term(fgd_global, student, teacher, tt.read(student) | gc_block(), tt.read(teacher) | gc_block()),
    )
    batch = {"images": {"x": torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(0))}}
    state, losses = step.init(batch), []
    first = state
    for _ in range(40):
        state, logs = step(state, batch)
        losses.append(logs["contexts"].item())
    assert losses[-1] < losses[0]
    was, now = (torch.utils._pytree.tree_leaves(s.trainable["terms"]) for s in (first, state))
    assert len(now) == 14
    assert all(bool((a != b).any()) for a, b in zip(was, now, strict=True))


def test_what_it_refuses() -> None:
    with pytest.raises(TransferError, match=r"gc_block: wanted a ratio of at least 1, got 0"):
        gc_block(0)
    with pytest.raises(TransferError, match=r"gc_block: wanted a map \(n, c, h, w\) .* got \(2, 3\)"):
        gc_block().init(torch.Generator(), torch.empty(2, 3))
    params = gc_block().init(torch.Generator(), torch.empty(2, 3, 5, 5))
    with pytest.raises(TransferError, match=r"gc_block: wanted c = 3, as at init, got \(2, 4, 5, 5\)"):
        gc_block().apply(params, torch.empty(2, 4, 5, 5))
