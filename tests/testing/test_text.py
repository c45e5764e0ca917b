"""Values in messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ttransfer.testing._text import text


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (torch.tensor([[1.0, -2e-9]], dtype=torch.float64), "[[1.0, -2e-09]]"),
        (torch.tensor(1 / 3, dtype=torch.float64), "0.333333333"),
        (torch.tensor([1, -100]), "[1, -100]"),
        (torch.tensor([True, False]), "[True, False]"),
        (torch.tensor([float("nan"), float("inf")]), "[nan, inf]"),
        (torch.zeros(65), "tensor of shape (65,), float32"),
        (torch.empty(2, device="meta"), "tensor of shape (2,), float32"),
        (1 / 3, "0.333333333"),
        ("x" * 300, "str"),
    ],
    ids=["tiny", "scalar", "labels", "mask", "odd", "large", "meta", "number", "long"],
)
def test_values_can_be_typed_in_or_are_described(value: Any, written: str) -> None:
    assert text(value) == written
