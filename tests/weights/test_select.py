"""Selecting and dropping: by pattern, and said in the plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import chain, drop, select

SOURCE = {"conv.weight": torch.ones(2, 3), "fc.weight": torch.ones(4), "fc.bias": torch.ones(1)}
TRIALS = (
    weight_map_trial(select("fc.*"), SOURCE, {"fc.weight": torch.zeros(4)}, name="select", verbatim=True, examples=4),
    weight_map_trial(drop("fc.*"), SOURCE, {"conv.weight": torch.zeros(2, 3)}, name="drop", verbatim=True, examples=4),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_each_source_is_taken_or_said_to_be_left_out() -> None:
    plan = select([r".*\.bias", "conv.*"]).plan(SOURCE, {})
    assert list(plan.made) == ["conv.weight", "fc.bias"]
    assert plan.unused == {"fc.weight": "not selected"}
    assert drop(["fc.weight"]).plan(SOURCE, {}).unused == {"fc.weight": "dropped"}
    assert list(chain(drop("fc.*"), select("conv.*")).apply(SOURCE, {})) == ["conv.weight"]


@pytest.mark.parametrize("make", [select, drop])
def test_a_pattern_that_names_nothing_is_refused(make: Callable[..., object]) -> None:
    for use in (make("cov.*").apply, make(["fc.*", "cov.*"]).plan):  # type: ignore[attr-defined]
        with pytest.raises(TransferError, match=rf"{make.__name__}: pattern 'cov\.\*' matches no source"):
            use(SOURCE, {})


@pytest.mark.parametrize("choose", [select, drop])
def test_no_patterns_are_a_slip(choose: Any) -> None:
    with pytest.raises(TransferError, match=f"{choose.__name__}: no patterns"):
        choose([])
