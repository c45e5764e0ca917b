"""Every family of labels is what it says, with labels that are ignored among them too."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.testing import strategies as tts
from ttransfer.testing.strategies._labels import LABELS

Draws = Callable[..., list[Any]]
Smallest = Callable[..., Any]
SHAPES = [(1,), (2,), (3,), (2, 3, 2), (200,)]


@pytest.mark.parametrize("ignore", [None, -100, 0, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", LABELS)
def test_labels_are_what_the_family_says(family: str, shape: tuple[int, ...], ignore: int | None, draws: Draws) -> None:
    classes = 4
    found = draws(tts.labels(shape, classes=classes, family=family, ignore_index=ignore), 40)
    assert all((y.shape, y.dtype) == (shape, torch.int64) for y in found)
    kept = [y[y != ignore] if ignore is not None else y.flatten() for y in found]
    there = [label for label in range(classes) if label != ignore]
    for y in kept:
        n = y.numel()
        assert n >= 1
        assert set(y.tolist()) <= set(there)
        if family == "one class":
            assert y.unique().numel() == 1
        elif family == "two classes":
            assert y.unique().numel() == min(2, n) or (n == 1 and y.unique().numel() == 1)
            assert (y[2:] == y[:-2]).all()
        elif family == "long-tailed":
            first = int((y == there[0]).sum())
            assert 2 * first > n
            assert (first < n) == (n >= 3)
    number = torch.Size(shape).numel()
    # Each class comes, and some labels are ignored, whenever more are there than must be left.
    comes = {label for y in kept for label in y.tolist()}
    assert comes == (set(there) if family != "long-tailed" or number >= 3 else {there[0]})
    left = min(number, {"two classes": 2, "long-tailed": 3}.get(family, 1))
    least = min(y.numel() for y in kept)
    assert least == number if ignore is None or number == left else left <= least < number
    assert max(y.numel() for y in kept) == number


def test_a_single_class_is_enough_where_one_is_wanted(draws: Draws) -> None:
    for family in ("balanced", "one class"):
        assert {y.sum().item() for y in draws(tts.labels((3,), classes=1, family=family))} == {0}


def test_labels_shrink_to_something_readable(smallest: Smallest) -> None:
    def least(condition: Callable[[Any], Any] = lambda _: True, *, n: int = 4, **options: Any) -> Any:
        return smallest(tts.labels((n,), classes=4, **options), condition).tolist()

    assert least() == least(family="one class") == least(ignore_index=-100) == [0, 0, 0, 0]
    assert least(lambda y: y.unique().numel() == 3) == [0, 0, 1, 2]
    assert least(family="long-tailed") == [0, 0, 1, 0]
    assert least(family="two classes") == [0, 1, 0, 1]
    assert least(lambda y: 3 in y, family="one class") == [3, 3, 3, 3]
    assert least(lambda y: -1 in y, ignore_index=-1) == [0, 0, 0, -1]
    assert least(lambda y: (y < 0).sum() == 3, ignore_index=-1) == [0, -1, -1, -1]
    assert least(ignore_index=0) == [1, 1, 1, 1]


def test_many_labels_stay_within_the_budget(draws: Draws, smallest: Smallest) -> None:
    many = tts.labels((10, 40), classes=9, ignore_index=255)
    assert len(draws(many, 20)) == 20
    assert {len(y.unique()) for y in draws(many, 20)} >= {10}
    assert not smallest(many).any()
    assert (smallest(many, lambda y: y[0, 3] == 255) == 255).sum() == 1


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no classes": (lambda: tts.labels((2,), classes=0), "labels: classes must be a whole number from 1 on, got 0"),
    "half a class": (lambda: tts.labels((2,), classes=1.5), "a whole number from 1 on, got 1.5"),
    "no such family": (
        lambda: tts.labels((2,), classes=2, family="longtailed"),
        "'longtailed'; did you mean 'long-tai",
    ),
    "one of two": (
        lambda: tts.labels((2,), classes=1, family="two classes"),
        "'two classes' needs 2 classes, got classes=1",
    ),
    "no tail": (
        lambda: tts.labels((2,), classes=2, family="long-tailed", ignore_index=1),
        "labels: 'long-tailed' needs 2 classes, got classes=2, of which 1 is ignored",
    ),
    "all ignored": (
        lambda: tts.labels((2,), classes=1, ignore_index=0),
        "needs 1 classes, got classes=1, of which 0 is",
    ),
    "ignore by name": (
        lambda: tts.labels((2,), classes=2, ignore_index="void"),
        "labels: ignore_index must be a whole number or None, got 'void'",
    ),
    "no shape": (lambda: tts.labels(None, classes=2), "labels: shape must be (n,) or (n, ...), of whole numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_are_refused_before_anything_is_drawn(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(TransferError, match=re.escape(message)):
        call()
