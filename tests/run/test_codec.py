from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ttransfer as tt
from ttransfer.run import _codec as codec

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=5)
)
KEYS = st.text(max_size=5) | st.integers() | st.binary(max_size=3) | st.tuples(st.integers(), st.text(max_size=2))
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.sampled_from(["$tuple", "$dict", "$bytes", "$"]).flatmap(lambda tag: inner.map(lambda x: {tag: x}))
    ),
    max_leaves=12,
)


def through_json(value: Any) -> Any:
    return codec.decode(json.loads(json.dumps(codec.encode(value), allow_nan=False)))


def typed(value: Any) -> Any:
    """Tell 1 from True and 1.0, and a list from a tuple, which == does not."""
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    if isinstance(value, dict):
        return dict, [(typed(k), typed(v)) for k, v in value.items()]
    return type(value), value


@given(VALUES)
def test_json_brings_back_what_went_in(value: Any) -> None:
    assert typed(through_json(value)) == typed(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_floats_that_json_lacks(value: float) -> None:
    found = through_json([value])[0]
    assert type(found) is float
    assert found == value or (math.isnan(found) and math.isnan(value))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)], ids=str)
def test_tensors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    found = through_json({"a": (tensor,)})["a"][0]
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_arrays_and_their_numbers() -> None:
    array = np.arange(6, dtype=np.uint32).reshape(2, 3)
    found = through_json({"keys": array, "position": array[1, 2]})
    assert found["keys"].dtype == array.dtype
    np.testing.assert_array_equal(found["keys"], array)
    assert (type(found["position"]), found["position"]) == (int, 5)


def test_what_cannot_be_saved_is_named() -> None:
    with pytest.raises(tt.TransferError, match=r"^extra/loader/1: a builtins\.complex cannot be saved; wanted None"):
        codec.encode({"loader": [1, 1j]})
