"""What is refused where a number belongs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.weights import average, dare, karcher, pool, slerp, task_arithmetic, ties, wise_ft
from ttransfer.weights._numbers import python_number, want_number, want_numbers

POOL = pool(base={"w": torch.zeros(3)}, a={"w": torch.ones(3)})


@pytest.mark.parametrize("value", [1, 0.5, True, np.float32(0.5), np.int64(2), torch.tensor(0.5)])
def test_numbers(value: Any) -> None:
    want_number("map", "key", value)
    for several in (value, [value, 1.0], (value,), {"a": value}):
        want_numbers("map", "key", several)


def test_python_numbers() -> None:
    for value in (1, 0.5, np.float32(0.5), np.int64(2)):
        python_number("map", "key", value)
    for value in (1, np.int64(2)):
        python_number("map", "key", value, whole=True)
    for wrong, got in ((0.5, "0.5"), (True, "bool"), (None, "NoneType"), ("2", "'2'"), ([1], r"\[int\]")):
        with pytest.raises(TransferError, match=f"map: wanted an int for 'key', got {got}$"):
            python_number("map", "key", wrong, whole=True)
    with pytest.raises(TransferError, match="map: 'key' is read as a Python number, and cannot be learned or swept"):
        python_number("map", "key", torch.tensor(1.0))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (dare, "dare: wanted a number for 'drop', got 'x'"),
        (lambda x: dare(0.5, seed=x), "dare: wanted an int for 'seed', got 'x'"),
        (ties, "ties: wanted a number for 'density', got 'x'"),
        (lambda x: ties(scale=x), "ties: wanted a number or a tensor for 'scale', got 'x'"),
        (lambda x: ties(thresholds=x), "ties: wanted name -> magnitude for 'thresholds', got str"),
        (lambda x: ties(thresholds={"a": x}), "ties: wanted a number or a tensor for 'thresholds', got 'x'"),
        (lambda x: average([x]), "average: wanted a number or a tensor for 'weights', got 'x'"),
        (lambda x: average({"a": x}), "average: wanted a number or a tensor for 'weights', got 'x'"),
        (task_arithmetic, "task_arithmetic: wanted a number or a tensor for 'scale', got 'x'"),
        (wise_ft, "wise_ft: wanted a number or a tensor for 'alpha', got 'x'"),
        (slerp, "slerp: wanted a number or a tensor for 't', got 'x'"),
        (karcher, "karcher: wanted a number or a tensor for 'weights', got 'x'"),
        (lambda x: karcher(iterations=x), "karcher: wanted an int for 'iterations', got 'x'"),
    ],
)
def test_words_are_no_numbers(make: Callable[[Any], object], told: str) -> None:
    with pytest.raises(TransferError, match=f"^{told}$"):
        make("x")


HALF: Any = np.float32(0.5)


@pytest.mark.parametrize("map", [ties(HALF), task_arithmetic(HALF), wise_ft(HALF, tuned="a")])
def test_numbers_of_numpy_do(map: Any) -> None:
    assert map.apply(POOL, {})["w"].dtype == torch.float32
