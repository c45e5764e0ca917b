"""Casts: of floating-point tensors, and there and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.testing import judge, parametrize_with_checks, weight_map_trial
from ttransfer.weights import cast

SRC = {"fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(3), "bn.num_batches_tracked": torch.tensor(2)}
DTYPE = "a cast gives the dtype that it is told, whatever the source and the target have"
ROUNDED = "differences at steps of 1e-5 are lost in float32"


TRIALS = [
    weight_map_trial(
        cast(torch.float64), SRC, SRC, expected_failed_checks={"target-dtype": DTYPE}, name="64", examples=4
    ),
    weight_map_trial(
        cast(torch.float32),
        SRC,
        SRC,
        expected_failed_checks={"target-dtype": DTYPE, "gradcheck-input": ROUNDED},
        verbatim=False,
        name="32",
        examples=4,
    ),
]


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_graph() -> None:
    assert not judge(TRIALS[0], only=["one-graph"]).failed


def test_what_is_cast() -> None:
    new = cast(torch.bfloat16, "fc.weight").apply(SRC, {})
    assert [x.dtype for x in new.values()] == [torch.bfloat16, torch.float32, torch.int64]
    assert all(new[name] is SRC[name] for name in list(SRC)[1:])
    assert cast(torch.float32).apply(SRC, {})["fc.weight"] is SRC["fc.weight"]
    assert cast(torch.float16).plan(SRC, {}).made["fc.bias"].how == "float32 -> float16"


def test_there_and_back() -> None:
    src = {"w": torch.randn(4, 4)}
    back = cast(torch.float32).apply(cast(torch.float64).apply(src, {}), {})
    assert torch.equal(back["w"], src["w"])


def test_tied_weights_stay_one() -> None:
    one = torch.randn(2, 3)
    new = cast(torch.float16).apply({"a": one, "b": one}, {})
    assert new["a"] is new["b"]


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("fc", "pattern 'fc' matches no source"),
        (["fc.*", "bn.*"], r"'bn.\*' names only 'bn.num_batches_tracked' \(\) int64 and its like"),
    ],
)
def test_mistakes_are_named(patterns: Any, message: str, dry: bool) -> None:
    map = cast(torch.float16, patterns)
    with pytest.raises(TransferError, match=f"cast: {message}"):
        (map.plan if dry else map.apply)(SRC, {})


def test_no_floating_point() -> None:
    with pytest.raises(TransferError, match=r"cast: wanted a floating-point dtype .*, got torch.int8"):
        cast(torch.int8)


def test_a_dtype_is_no_word() -> None:
    with pytest.raises(TransferError, match=r"cast: wanted a floating-point dtype .*, got 'float16'"):
        cast("float16")  # type: ignore[arg-type]
