"""The dry run that the maps share."""

from __future__ import annotations

import torch

from ttransfer.core._maps import Plan
from ttransfer.weights._plan import planned


def test_all_that_a_plan_says() -> None:
    src = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(4)}
    like = {"x": torch.ones(2), "y": torch.ones(5), "z": torch.ones(1)}
    assert planned({"x": "a", "y": "b", "elsewhere": "b"}, src, like) == Plan(
        copied={"x": "a", "y": "b", "elsewhere": "b"},
        unused=("c",),
        missing=("z",),
        mismatched={"y": "source (3,), target (5,)"},
    )


def test_nothing() -> None:
    assert planned({}, {}, {}) == Plan({}, (), (), {})
