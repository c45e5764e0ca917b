"""What an optimizer declares as its numbers."""

from __future__ import annotations

import pytest
import torch

from ttransfer import TransferError, optim, schedules
from ttransfer.core._types import Optimizer
from ttransfer.optim._names import declare, merge, pick


@pytest.mark.parametrize("value", [0.1, 1, torch.tensor(0.1), schedules.constant(0.1)])
def test_numbers_are_declared_as_they_are(value: object) -> None:
    assert declare("adam", lr=value)["lr"] is value


@pytest.mark.parametrize("value", ["0.1", None, True, torch.ones(1), (0.9, 0.999)])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(TransferError, match=r"optim.adam: lr is .*, wanted a number, a 0-d tensor or a schedule"):
        optim.adam(value)


def test_merge_and_pick_are_inverse() -> None:
    parts = {"a": ("", optim.clip_by_norm(1.0)), "b": ("b.", optim.adam(0.1))}
    merged = merge("chain", "", parts)
    assert list(merged) == ["max_norm", "b.lr", "b.beta1", "b.beta2", "b.eps"]
    hyper = {name: torch.tensor(float(i)) for i, name in enumerate(merged)}
    assert pick(parts["a"][1], "", hyper) == {"max_norm": hyper["max_norm"]}
    assert list(pick(parts["b"][1], "b.", hyper)) == ["lr", "beta1", "beta2", "eps"]


def test_entries_of_schedules_may_not_clash() -> None:
    def part(**hyper: object) -> Optimizer:
        return Optimizer(lambda p: {}, lambda g, s, p, h: (g, s), hyper)

    with pytest.raises(TransferError, match=r"parts 'x' and 'y' both have 'lr.value'; rename"):
        merge("chain", "rename", {"x": ("", part(lr=schedules.constant(1.0))), "y": ("lr.", part(value=1.0))})
