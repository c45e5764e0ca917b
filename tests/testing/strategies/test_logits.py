"""Every family of logits, probabilities and features is what it says, at every shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.testing import strategies as tts
from ttransfer.testing.strategies._logits import FEATURES, LOGITS, PROBABILITIES

Draws = Callable[..., list[Any]]
Smallest = Callable[..., Any]
SHAPES = [(1, 2), (3, 3), (4, 2, 2), (2, 3, 2, 2), (40, 5), (1, 1), (3,)]
F64 = torch.float64


def columns(x: Tensor) -> Tensor:
    """(rows, classes), with places as rows; one class against the rest is one column."""
    return x.movedim(1, -1).reshape(-1, x.shape[1]) if x.ndim > 1 else x[:, None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", LOGITS)
def test_logits_are_what_the_family_says(family: str, shape: tuple[int, ...], draws: Draws) -> None:
    found = draws(tts.logits(shape, family=family), 60)
    assert all((x.shape, x.dtype) == (shape, F64) and x.isfinite().all() for x in found)
    rows = torch.stack([columns(x) for x in found])
    classes = rows.shape[-1]
    if family == "moderate":
        assert rows.abs().max() <= 3
        assert (rows * 4 == (rows * 4).round()).all()
        assert rows.unique().numel() > 10
    elif family == "generic":
        assert sum(x.unique().numel() >= 0.9 * x.numel() for x in found) > 50
    elif family == "confident":
        # One class of each row, and no other.
        assert ((rows.abs() == 1000).sum(-1) == 1).all()
        assert ((rows.abs() <= 1) | (rows.abs() == 1000)).all()
        assert {-1000.0, 1000.0} <= set(rows.unique().tolist())
        assert (rows.abs() == 1000).reshape(-1, classes).any(0).all()
    elif family == "tied":
        assert set(rows.unique().tolist()) <= {-1.0, 0.0, 1.0}
        largest = (rows == rows.amax(-1, keepdim=True)).sum(-1)
        if classes > 1:
            assert (largest >= 2).all()
            assert rows.unique().numel() == 3
            assert (largest < classes).any() == (classes > 2)
        else:
            assert not rows.any()
    else:
        assert (rows == rows[:, :1]).all() or len(shape) > 2
        equal = torch.stack(found)
        assert (equal == equal[:, :1]).all()
        assert (rows == 0).all((1, 2)).sum() >= 1
        assert (rows < -900).any(2).any(1).sum() >= 5
        assert ((rows != 0) & (rows > -900)).any(2).any(1).sum() >= 5


def test_logits_shrink_to_something_readable(smallest: Smallest) -> None:
    def least(family: str, condition: Callable[[Tensor], Any] = lambda _: True) -> Any:
        return smallest(tts.logits((2, 3), family=family), condition).tolist()

    assert least("moderate") == least("tied") == least("degenerate") == [[0, 0, 0], [0, 0, 0]]
    assert least("confident") == [[1000, 0, 0], [1000, 0, 0]]
    assert least("confident", lambda x: x.min() < -900) == [[1000, 0, 0], [-1000, 0, 0]]
    assert least("tied", lambda x: x.max() == 1 and x.min() == 0) == [[0, 0, 0], [1, 0, 1]]
    assert least("degenerate", lambda x: x.min() < -900) == [[-1000, 0, 0], [-1000, 0, 0]]
    assert least("degenerate", lambda x: x.max() > 0) == [[0, 0, 0.25], [0, 0, 0.25]]


def test_large_logits_shrink_like_small_ones(smallest: Smallest) -> None:
    """50 rows of 8: nothing runs out of Hypothesis's budget, and the first rows go one by one."""
    found = smallest(tts.logits((50, 8), family="confident"), lambda x: (x < -900).any())
    assert (found.abs() == 1000).sum() == 50
    assert found.unique().tolist() == [-1000, 0, 1000]
    assert (found < -900).sum() == 1
    assert smallest(tts.logits((50, 8)), lambda x: x[1, 1] > 1).count_nonzero() == 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 4), (2, 3, 2), (20, 5)])
@pytest.mark.parametrize("family", PROBABILITIES)
def test_probabilities_are_what_the_family_says(family: str, shape: tuple[int, ...], draws: Draws) -> None:
    found = torch.stack(draws(tts.probabilities(shape, family=family), 60))
    assert found.shape[1:] == shape
    assert found.dtype == F64
    torch.testing.assert_close(found.sum(2), torch.ones_like(found.sum(2)), rtol=0, atol=1e-14)
    assert (found >= 0).all()
    classes = shape[1]
    if family in ("moderate", "generic"):
        assert found.min() > 0
        assert (found.unique().numel() > 5) == (classes > 1)
    elif family == "uniform":
        assert (found == 1 / classes).all()
    elif classes > 1:
        assert (found.amin(2) == 0).all()
        certain = (found.amax(2) == 1).double().mean()
        assert certain == 1 if family == "certain" or classes == 2 else 0 < certain < 0.95
    if family == "certain":
        assert (found == 1).movedim(2, -1).reshape(-1, classes).any(0).all()


def test_probabilities_shrink_to_something_readable(smallest: Smallest) -> None:
    def least(family: str, condition: Callable[[Tensor], Any] = lambda _: True) -> Any:
        return smallest(tts.probabilities((2, 2), family=family), condition).tolist()

    assert least("moderate") == [[0.5, 0.5], [0.5, 0.5]]
    assert least("moderate", lambda p: p.max() > 0.6) == [[0.5, 0.5], [1 / 3, 2 / 3]]
    assert least("sparse") == [[0, 1], [0, 1]]
    assert least("certain") == [[1, 0], [1, 0]]


@pytest.mark.parametrize("shape", [(1, 2), (2, 3), (4, 2), (5, 2, 2, 2), (3, 2, 4), (4,), (30, 6), (3, 0), (0, 2)])
@pytest.mark.parametrize("family", FEATURES)
def test_features_are_what_the_family_says(family: str, shape: tuple[int, ...], draws: Draws) -> None:
    found = draws(tts.features(shape, family=family), 60)
    assert all((x.shape, x.dtype) == (shape, F64) and x.isfinite().all() for x in found)
    if 0 in shape:
        return
    n = shape[0]
    flat = [x.reshape(n, -1) for x in found]
    kinds = {x.unique(dim=0).shape[0] for x in flat}
    zero_row = any((x == 0).all(1).any() for x in flat)
    if family == "collapsed":
        assert kinds == {1}
        assert not zero_row
        assert torch.stack(flat).unique().numel() > 10
    elif family == "duplicated":
        assert kinds == ({1} if n < 3 else {2})
        assert not zero_row
        assert all(torch.equal(x[2:], x[:-2]) for x in flat)
    elif family == "constant":
        assert all(x.unique().numel() == 1 for x in flat)
        assert len({x[0, 0].item() for x in flat}) > 10
    elif family == "zero":
        assert not any(x.any() for x in flat)
    elif family == "large":
        assert not zero_row
        assert min(x.abs().amax(1).min() for x in flat) >= 250
        assert max(x.abs().max() for x in flat) == 3000
    elif family == "generic":
        assert sum(x.unique().numel() >= 0.9 * x.numel() for x in flat) > 50
    else:
        assert max(x.abs().max() for x in flat) == 3
        assert n > 1 or zero_row


def test_features_shrink_to_something_readable(smallest: Smallest) -> None:
    def least(family: str, condition: Callable[[Tensor], Any] = lambda _: True) -> Any:
        return smallest(tts.features((3, 2), family=family), condition).tolist()

    assert least("moderate") == least("constant") == least("zero") == [[0, 0]] * 3
    assert least("large") == [[1000, 0]] * 3
    assert least("large", lambda x: x.min() < 0) == [[1000, 0], [1000, 0], [0, -250]]
    assert least("collapsed") == [[1, 0]] * 3
    assert least("duplicated") == [[1, 0], [2, 0], [1, 0]]
    assert least("constant", lambda x: x.min() < 0) == [[-0.25, -0.25]] * 3


def test_equal_rows_share_no_storage(draws: Draws) -> None:
    for family in ("collapsed", "duplicated", "constant", "zero"):
        for x in draws(tts.features((4, 2), family=family), 5):
            x[0] += 1
            assert not torch.equal(x[0], x[2])
    for x in draws(tts.logits((4, 2), family="degenerate"), 5):
        x[0] += 1
        assert not torch.equal(x[0], x[2])


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no such logits": (
        lambda: tts.logits((2, 3), family="confidnet"),
        "logits: no family 'confidnet'; did you mean 'co",
    ),
    "no family": (lambda: tts.logits((2, 3), family=None), "logits: no family None; there are: confident"),
    "no rows": (
        lambda: tts.logits(()),
        "logits: shape must be (n, classes) or (n, classes, ...), of whole numbers or (n,)",
    ),
    "no such features": (
        lambda: tts.features((2, 3), family="ones"),
        "features: no family 'ones'; there are: collapsed,",
    ),
    "no row of features": (lambda: tts.features(()), "features: shape must be (n, ...), of whole numbers, got ()"),
    "a shape of floats": (lambda: tts.features((2, 1.0)), "whole numbers, got (2, 1.0)"),
    "no classes": (
        lambda: tts.probabilities((2,)),
        "probabilities: shape must be (n, classes) or (n, classes, ...), of",
    ),
    "none of the classes": (
        lambda: tts.probabilities((2, 0)),
        "probabilities: no classes to share among in shape (2, 0)",
    ),
    "no such probabilities": (
        lambda: tts.probabilities((2, 2), family="flat"),
        "probabilities: no family 'flat'; there",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_are_refused_before_anything_is_drawn(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(TransferError, match=re.escape(message)):
        call()
