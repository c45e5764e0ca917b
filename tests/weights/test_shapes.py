"""What is the only one of its kind and shape, and when that decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttransfer._errors import TransferError
from ttransfer.core._types import Params
from ttransfer.weights import match, match_by_shape
from ttransfer.weights._shapes import by_shape

SHAPES = st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from([(2,), (3,), (2, 3)]), max_size=5)


def made(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> Params:
    return {f"{prefix}{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}


@settings(max_examples=150)
@given(SHAPES, SHAPES)
def test_pairs_are_the_only_ones_on_both_sides(
    one: dict[str, tuple[int, ...]], other: dict[str, tuple[int, ...]]
) -> None:
    src, like = made(one, "s"), made(other, "t")
    pairs, several = by_shape(src, like, {}, src, like)
    for name, x in like.items():
        here = [source for source, y in src.items() if y.shape == x.shape]
        rivals = [target for target, y in like.items() if y.shape == x.shape]
        if len(here) == len(rivals) == 1:
            assert pairs[name][0] == here[0]
        else:
            assert name not in pairs
            assert several.get(name, ()) == tuple(here)


def test_layers_that_are_counted_otherwise_are_not_mixed() -> None:
    # nn.Sequential with and without its activations: "2" is the second layer here and the third there.
    src, like = made(dict.fromkeys("024", (4, 4))), made(dict.fromkeys("012", (4, 4)))
    for here in (src, dict(reversed(src.items()))):
        assert "1.weight" not in match().plan(here, like).made
        assert match().plan(here, like).ambiguous == {"1.weight": ("4.weight",)}
        with pytest.raises(TransferError, match=r"'1.weight' \(4, 4\) float32: ambiguous, it may be '4.weight'"):
            match().apply(here, like)


def test_names_that_are_counted_otherwise_are_not_mixed() -> None:
    # bn0, bn1, bn2 here are bn1, bn2, bn3 there.
    src = made({"block.bn0": (6,), "block.bn1": (6,), "block.bn2": (4,)})
    like = made({"block.bn1": (6,), "block.bn2": (6,), "block.bn3": (4,)})
    assert match().plan(src, like).ambiguous == {"block.bn2.weight": ("block.bn0.weight",)}
    assert match().plan(src, like).made["block.bn3.weight"].sources == ("block.bn2.weight",)


def test_what_is_the_last_one_left_is_taken() -> None:
    src = made({"conv": (4, 4), "head": (4, 4), "pool": (2, 4)})
    like = made({"conv": (4, 4), "fc": (4, 4), "norm": (2, 4)})
    assert match().plan(src, like).made["fc.weight"].why == "by shape: the only 'weight' (4, 4) that is left"


def test_a_last_one_that_would_cross_another_is_refused() -> None:
    # The source lists its layers in order, so what comes first there does not come last here.
    src = made({"stem": (4, 4), "body": (4, 4), "act": (2, 4)})
    like = made({"body": (4, 4), "head": (4, 4), "act": (2, 4)})
    assert match().plan(src, like).ambiguous == {"head.weight": ("stem.weight",)}
    # Of a sorted file that is not known.
    assert match().plan(dict(sorted(src.items())), like).made["head.weight"].sources == ("stem.weight",)


def test_half_a_module_is_refused() -> None:
    src = {"a.weight": torch.zeros(4, 3), "b.bias": torch.zeros(4)}
    like = {"x.weight": torch.zeros(4, 3), "x.bias": torch.zeros(4)}
    assert match_by_shape().plan(src, like).ambiguous == {"x.weight": ("a.weight",), "x.bias": ("b.bias",)}
