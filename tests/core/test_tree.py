"""Verbs over trees."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import ttransfer as tt
from tests.support.compare import worst
from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree


class Pair(NamedTuple):
    left: Any
    right: Any


KEYS = st.text("abc", min_size=1, max_size=3)
FLAT = st.dictionaries(st.lists(KEYS, min_size=1, max_size=3).map(".".join), st.integers(), max_size=6)
TREES = st.recursive(
    st.integers(),
    lambda inner: (
        st.dictionaries(KEYS, inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=8,
)


def test_it_is_public() -> None:
    assert tt.tree is tree


@given(TREES)
def test_paths_go_in_the_order_of_leaves(x: Any) -> None:
    values = [value for _, value in tree._walk(x, (), ".")]
    assert values == tree.leaves(x)
    assert set(tree.paths(x).values()) == set(values)


@given(TREES)
def test_mapping_keeps_the_structure(x: Any) -> None:
    same = tree.map(lambda leaf: leaf, x)
    assert same == x
    assert type(same) is type(x)
    twice = tree.map(lambda a, b: a + b, x, x)
    assert tree.leaves(twice) == [2 * leaf for leaf in tree.leaves(x)]
    assert tree.unflatten(x, tree.leaves(twice)) == twice


@given(TREES, st.data())
def test_at_replaces_one_leaf(x: Any, data: st.DataObject) -> None:
    paths = tree.paths(x)
    assume(paths)
    assume(len(paths) == len(tree.leaves(x)))  # no two leaves of one name
    path = data.draw(st.sampled_from(sorted(paths)))
    changed = tree.at(x, path, "new")
    assert tree.paths(changed) == {**paths, path: "new"}
    assert tree.paths(x) == paths
    assert type(changed) is type(x) or not path


def test_paths_of_a_state_and_of_numbered_keys() -> None:
    assert tree.paths({0: {"w": 1}, 1: 2}) == {"0.w": 1, "1": 2}
    assert tree.paths(Pair({"a.b": 1}, [2]), "/") == {"left/a.b": 1, "right/0": 2}
    assert tree.paths(collections.OrderedDict(a=1)) == {"a": 1}
    assert tree.paths(5) == {"": 5}


@pytest.mark.parametrize(
    ("x", "path", "expected"),
    [
        ({"fc.weight": 1, "fc": {"weight": 2}}, "fc.weight", {"fc.weight": 9, "fc": {"weight": 2}}),
        ({"fc": {"weight": 2, "bias": 3}}, "fc.weight", {"fc": {"weight": 9, "bias": 3}}),
        ({"a": {"b": 1}}, "a", {"a": 9}),
        ([1, (2, 3)], "1.0", [1, (9, 3)]),
        (list(range(12)), "11", [*range(11), 9]),
        (Pair(1, {"x": 2}), "right.x", Pair(1, {"x": 9})),
    ],
)
def test_at(x: Any, path: str, expected: Any) -> None:
    changed = tree.at(x, path, 9)
    assert changed == expected
    assert type(changed) is type(expected)


@pytest.mark.parametrize(
    ("x", "path", "said"),
    [
        ({"weight": 1}, "wieght", "nothing at 'wieght'; did you mean 'weight'"),
        ({"a": {"b": 1}}, "a.c", "nothing at 'c'; there are: b"),
        ({"a": 1}, "a.b", "nothing at 'b', a int has no parts"),
        ([1], "1", "nothing at '1'; there are: 0"),
        ({}, "a", "there are none"),
        (Pair(1, 2), "rigth", "did you mean 'right'"),
    ],
)
def test_at_nothing(x: Any, path: str, said: str) -> None:
    with pytest.raises(TransferError, match=said):
        tree.at(x, path, 9)


@given(FLAT, st.sets(st.sampled_from("abc")))
def test_partition_and_combine_are_inverse(params: dict[str, int], letters: set[str]) -> None:
    kept, rest = tree.partition(params, lambda name: name[0] in letters)
    assert tree.combine(kept, rest) == params
    assert tree.filter(params, lambda name: name[0] in letters) == kept
    assert all(name[0] in letters for name in kept)
    assert not any(name[0] in letters for name in rest)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("fc.*", ["fc.weight", "fc.bias"]),
        ("fc|.*bias", ["fc.bias", "conv.bias"]),
        (".*", ["fc.weight", "fc.bias", "conv.bias"]),
        ("conv.bias", ["conv.bias"]),
    ],
)
def test_patterns_cover_whole_names(pattern: str, names: list[str]) -> None:
    params = {"fc.weight": 1, "fc.bias": 2, "conv.bias": 3}
    assert list(tree.filter(params, pattern)) == names
    assert [name for name in params if tree.matches(pattern, name)] == names
    kept, rest = tree.partition(params, pattern)
    assert {**kept, **rest} == params


def test_patterns_that_match_nothing_or_are_none() -> None:
    with pytest.raises(TransferError, match=r"'fc' matches none of 1 names; did you mean 'fc\.w'"):
        tree.filter({"fc.w": 1}, "fc")
    with pytest.raises(TransferError, match="is no regular expression"):
        tree.filter({"fc.w": 1}, "fc(")


def test_combine_refuses_an_overlap() -> None:
    assert tree.combine() == {}
    assert tree.combine({"a": 1}, {}, {"b": 2}) == {"a": 1, "b": 2}
    with pytest.raises(TransferError, match=r"combine: 'b' is in two parts \(2 names are\)"):
        tree.combine({"a": 1, "b": 1, "c": 1}, {"c": 2, "b": 2})


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, torch.tensor(0.25, dtype=torch.float64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_lerp(weight: float | Tensor, dtype: torch.dtype) -> None:
    a = {"w": torch.tensor([0.0, 4.0], dtype=dtype), "n": torch.tensor(1), "b": (torch.tensor(True),)}
    b = {"w": torch.tensor([8.0, 4.0], dtype=dtype), "n": torch.tensor(5), "b": (torch.tensor(False),)}
    mixed = tree.lerp(a, b, weight)
    assert mixed["w"].dtype == dtype
    assert mixed["w"].tolist() == [8.0 * float(weight), 4.0]
    assert mixed["n"].item() == 5
    assert not mixed["b"][0]
    assert mixed["n"].data_ptr() != b["n"].data_ptr()
    assert (a["w"].tolist(), b["w"].tolist()) == ([0.0, 4.0], [8.0, 4.0])


def test_lerp_passes_a_gradient_to_the_weight_and_maps() -> None:
    a, b = {"w": torch.zeros(2, dtype=torch.float64)}, {"w": torch.tensor([1.0, 3.0], dtype=torch.float64)}
    weight = torch.tensor(0.5, dtype=torch.float64)
    assert torch.func.grad(lambda w: tree.lerp(a, b, w)["w"].sum())(weight).item() == 4.0
    weights = torch.tensor([0.0, 0.5], dtype=torch.float64)
    rows = torch.func.vmap(lambda w: tree.lerp(a, b, w))(weights)
    assert rows["w"].tolist() == [[0.0, 0.0], [0.5, 1.5]]


def test_cast_like() -> None:
    like = {"a": torch.zeros(1, dtype=torch.bfloat16), "b": [torch.zeros(1, dtype=torch.int64)]}
    cast = tree.cast_like({"a": torch.ones(3), "b": [torch.ones(2)]}, like)
    expected = {"a": torch.ones(3, dtype=torch.bfloat16), "b": [torch.ones(2, dtype=torch.int64)]}
    assert worst(cast, expected) == 0.0


def test_the_first_pattern_that_covers_a_name() -> None:
    assert tree.first_match(("a.*", "b|a.c", "d"), ("a.c", "b", "e", "d")) == (0, 1, -1, 2)
    with pytest.raises(TransferError, match=r"'\(' is no regular expression"):
        tree.first_match(("(",), ("a",))
