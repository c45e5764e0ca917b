"""Parameters under dotted names, and nested trees."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given

from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree
from ttransfer.testing import strategies as tts

Draws = Callable[..., list[Any]]
Smallest = Callable[..., Any]
F64 = torch.float64
MIXED = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@given(tts.params(leaves=(0, 6), dtypes=MIXED))
def test_names_are_a_modules(params: dict[str, torch.Tensor]) -> None:
    """No name goes on where another ends, every part is a letter, and parts come in order at each place."""
    assert not any(other.startswith(name + ".") for name in params for other in params)
    assert all(re.fullmatch(r"[a-z](\.[a-z]){0,2}", name) for name in params)
    for name in params:
        for i, part in enumerate(parts := name.split(".")):
            before = ".".join([*parts[:i], chr(ord(part) - 1)])
            assert part == "a" or any(other == before or other.startswith(before + ".") for other in params)


def test_all_shapes_dtypes_and_depths_come(draws: Draws) -> None:
    found = draws(tts.params(leaves=(2, 3), shapes=[(), (0,), (2, 3)], dtypes=MIXED))
    leaves = [x for params in found for x in params.values()]
    assert {len(params) for params in found} == {2, 3}
    assert {x.shape for x in leaves} == {(), (0,), (2, 3)}
    assert {x.dtype for x in leaves} == set(MIXED)
    assert {name.count(".") for params in found for name in params} == {0, 1, 2}
    assert sum(len({x.dtype for x in params.values()}) > 1 for params in found) > 50
    # Every dtype holds small exact numbers.
    for x in leaves:
        numbers = x.double() * (4 if x.is_floating_point() else 1)
        assert (numbers == numbers.round()).all()
        assert x.numel() == 0 or numbers.abs().max() <= 8


def test_plain_ones_are_float64_with_a_0d_tensor_and_a_matrix_among_them(draws: Draws) -> None:
    leaves = [x for params in draws(tts.params()) for x in params.values()]
    assert {x.dtype for x in leaves} == {F64}
    assert {x.ndim for x in leaves} == {0, 1, 2}
    assert {len(params) for params in draws(tts.params(leaves=(0, 1)))} == {0, 1}


def test_params_shrink_to_the_first_names_and_zeros(smallest: Smallest) -> None:
    def least(condition: Callable[[Any], Any] = lambda _: True, **options: Any) -> Any:
        return {name: x.tolist() for name, x in smallest(tts.params(**options), condition).items()}

    assert least() == {"a": 0}
    assert least(leaves=(0, 3)) == {}
    assert least(lambda p: len(p) > 2) == {"a": 0, "b": 0, "c": 0}
    assert least(lambda p: sum("." in name for name in p) == 2) == {"a.a": 0, "a.b": 0}
    assert least(lambda p: any(name.count(".") == 2 for name in p)) == {"a.a.a": 0}
    assert least(lambda p: any(x.ndim == 2 and x.any() for x in p.values())) == {"a": [[0, 0, 0], [0, 0, 0.25]]}
    kinds = smallest(tts.params(dtypes=MIXED), lambda p: len({x.dtype for x in p.values()}) == 2)
    assert {name: x.dtype for name, x in kinds.items()} == {"a": torch.float64, "b": torch.float32}


@given(tts.trees(leaves=(0, 5)))
def test_trees_are_walked_as_the_library_walks_them(drawn: Any) -> None:
    """Verbs over trees agree with each other on whatever is drawn."""
    leaves, paths = tree.leaves(drawn), tree.paths(drawn)
    assert len(leaves) == len(paths) <= 5
    assert all(x is y for x, y in zip(leaves, paths.values(), strict=True))
    doubled = tree.map(lambda x: 2 * x, drawn)
    assert {path: x.tolist() for path, x in tree.paths(doubled).items()} == {
        p: (2 * x).tolist() for p, x in paths.items()
    }
    again = tree.unflatten(drawn, leaves)
    assert all(x is y for x, y in zip(tree.leaves(again), leaves, strict=True))
    for path in paths:
        marker = torch.tensor(7.5)
        changed = tree.paths(tree.at(drawn, path, marker))
        assert {p for p in paths if changed[p] is not paths[p]} == {path}
        assert changed[path] is marker


def kinds_in(node: Any) -> set[type]:
    if isinstance(node, torch.Tensor):
        return set()
    children = node.values() if isinstance(node, dict) else node
    return {type(node)}.union(*map(kinds_in, children))


def test_trees_are_of_all_kinds(draws: Draws) -> None:
    found = draws(tts.trees(leaves=(2, 4)), 200)
    assert set().union(*map(kinds_in, found)) == {dict, list, tuple, tts.Pair}
    assert all(type(each) is dict for each in found)
    depths = {path.count(".") for each in found for path in tree.paths(each)}
    assert depths == {0, 1, 2}


def test_trees_shrink_to_one_leaf(smallest: Smallest) -> None:
    zero = torch.tensor(0.0, dtype=F64)
    assert smallest(tts.trees()) == {"a": zero}
    assert smallest(tts.trees(), lambda t: isinstance(t.get("a"), list)) == {"a": [zero]}
    assert smallest(tts.trees(), lambda t: isinstance(t.get("a"), tts.Pair)) == {"a": tts.Pair(zero, zero)}


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "less than none": (lambda: tts.params(leaves=(-1, 2)), "params: leaves must be the fewest and the most, from 0 on"),
    "upside down": (
        lambda: tts.trees(leaves=(3, 2)),
        "trees: leaves must be the fewest and the most, from 0 on, got (3, 2)",
    ),
    "no shapes": (
        lambda: tts.params(shapes=[]),
        "params: shape must be each one of whole numbers, in a list, got None",
    ),
    "one shape": (lambda: tts.params(shapes=(2, 3)), "in a list, got 2"),
    "no dtypes": (lambda: tts.params(dtypes=[]), "params: dtypes must be some of torch's for real numbers, got []"),
    "one dtype": (lambda: tts.trees(dtypes=F64), "trees: dtypes must be some of torch's for real numbers, got torch."),
    "complex": (lambda: tts.params(dtypes=[torch.complex64]), "for real numbers, got [torch.complex64]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_are_refused_before_anything_is_drawn(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(TransferError, match=re.escape(message)):
        call()
