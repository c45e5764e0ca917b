"""Numbers that shrink to zeros, masks that leave something, matrices that are orthogonal."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttransfer._errors import TransferError
from ttransfer.testing import strategies as tts
from ttransfer.testing.strategies._values import LIMIT

Draws = Callable[..., list[Any]]
Smallest = Callable[..., Any]
SHAPES = [(), (0,), (3,), (2, 3), (2, 0, 3), (2, 2, 2), (5, 10), (30, 7)]
F64 = torch.float64


@pytest.mark.parametrize("shape", SHAPES)
def test_grid_is_of_the_shape_and_on_the_grid(shape: tuple[int, ...], draws: Draws) -> None:
    for x in draws(tts.grid(shape, low=-1.0, high=2.5, step=0.5), 30):
        assert (x.shape, x.dtype) == (shape, F64)
        assert ((x >= -1) & (x <= 2.5) & (x * 2 == (x * 2).round())).all()


def test_grid_reaches_both_ends_and_counts_in_steps_that_are_no_binary_fractions(draws: Draws) -> None:
    seen = torch.stack(draws(tts.grid((6,), low=0.0, high=0.3, step=0.1), 60)).unique()
    torch.testing.assert_close(seen, torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=F64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (10, 7)])
def test_grid_shrinks_to_zeros_and_then_to_one_number(shape: tuple[int, ...], smallest: Smallest) -> None:
    assert not smallest(tts.grid(shape)).any()
    one = smallest(tts.grid(shape), lambda x: x.flatten()[1] > 1)
    assert one.flatten()[1] == 1.25
    assert one.count_nonzero() == 1
    assert smallest(tts.grid(shape), torch.Tensor.any).abs().sum() == 0.25
    assert (smallest(tts.grid(shape, low=0.5, high=2.0)) == 0.5).all()
    assert (smallest(tts.grid(shape, low=-2.0, high=-0.5)) == -0.5).all()


def test_what_is_drawn_by_a_seed_shrinks_to_zeros_too(smallest: Smallest) -> None:
    """The 49th number and those after it."""
    found = smallest(tts.grid((LIMIT + 9,)), lambda x: x[-1] > 1)
    assert not found[:LIMIT].any()
    assert found[LIMIT:].any()
    assert not smallest(tts.grid((LIMIT + 9,)), lambda x: x[0] > 1)[1:].any()


def test_a_large_tensor_is_no_simpler_than_a_small_one(smallest: Smallest) -> None:
    """A tensor drawn by one seed would be: fewer choices count as simpler."""
    several = st.integers(1, 40).flatmap(lambda n: tts.grid((n, 3)))
    assert smallest(several, torch.Tensor.any).tolist() == [[0, 0, 0.25]]
    assert smallest(several, lambda x: x.shape[0] > 7 and x.any()).shape == (8, 3)


@given(tts.generic((4, 5)))
def test_generic_numbers_have_three_decimals_and_differ(x: torch.Tensor) -> None:
    assert (x.shape, x.dtype) == ((4, 5), F64)
    torch.testing.assert_close(x * 1000, (x * 1000).round(), rtol=0, atol=1e-9)
    assert x.unique().numel() >= 18


def test_generic_has_the_scale_and_is_the_same_each_time(draws: Draws) -> None:
    wide, again = (torch.stack(draws(tts.generic((50,), scale=5.0))) for _ in range(2))
    assert torch.equal(wide, again)
    assert 4.5 < wide.std() < 5.5
    assert abs(wide.mean()) < 0.3


@pytest.mark.parametrize("count", [0, 1, 4, 100])
def test_repeated_rows_are_all_among_the_few(count: int, draws: Draws) -> None:
    several = 0
    for x in draws(tts.repeated(tts.generic((3, 2)), count=count), 40):
        assert x.shape == (count, 2)
        kinds = x.unique(dim=0).shape[0] if count else 0
        assert kinds <= 3
        several += kinds > 1
    assert (several > 10) == (count > 1)


def test_repeated_shrinks_to_the_first(smallest: Smallest) -> None:
    few = torch.tensor([[1], [2], [3]])
    assert smallest(tts.repeated(st.just(few), count=3)).tolist() == [[1], [1], [1]]
    assert smallest(tts.repeated(st.just(few), count=3), lambda x: 3 in x).tolist() == [[1], [1], [3]]
    assert smallest(tts.repeated(st.just(few), count=60), lambda x: 3 in x[:9]).flatten().tolist().count(1) == 59


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3), (2, 2, 2), (20, 9)])
@pytest.mark.parametrize("family", ["moderate", "single", "full", "empty"])
def test_masks_are_what_the_family_says(shape: tuple[int, ...], family: str, draws: Draws) -> None:
    found = torch.stack(draws(tts.masks(shape, family=family), 60))
    assert found.shape[1:] == shape
    assert found.dtype == torch.bool
    left = found.sum(-1)
    whole = shape[-1]
    allowed = {"moderate": range(1, whole + 1), "single": [1], "full": [whole], "empty": [0]}[family]
    assert set(left.unique().tolist()) <= set(allowed)
    if family == "moderate" and whole > 1:
        assert {1, whole} <= set(left.unique().tolist()) or whole == 9
    if family == "single":
        assert found.reshape(-1, whole).any(0).all()


def test_masks_shrink_to_letting_everything_stay(smallest: Smallest) -> None:
    assert smallest(tts.masks((2, 3))).all()
    assert smallest(tts.masks((2, 3)), lambda m: not m.all()).tolist() == [[True] * 3, [True, True, False]]
    assert smallest(tts.masks((3,)), lambda m: not m[0]).tolist() == [False, True, True]
    assert smallest(tts.masks((2, 2), family="single")).tolist() == [[True, False]] * 2


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("family", ["moderate", "generic"])
def test_orthogonal_matrices_are(size: int, family: str, draws: Draws) -> None:
    found = torch.stack(draws(tts.orthogonal(size, family=family)))
    one = torch.eye(size, dtype=F64).expand_as(found)
    torch.testing.assert_close(found @ found.mT, one, rtol=0, atol=1e-13)
    # A sign turned and both directions of turning; in "moderate", numbers of few decimals.
    turned = torch.linalg.det(found) < 0
    assert 5 < turned.sum() < 95
    if size > 1:
        assert ((found != one).any(-1).any(-1)).sum() > 50
    if family == "moderate":
        torch.testing.assert_close(found * 1e4, (found * 1e4).round(), rtol=0, atol=1e-8)


def test_orthogonal_shrinks_to_the_identity(smallest: Smallest) -> None:
    assert smallest(tts.orthogonal(3)).tolist() == torch.eye(3).tolist()
    turned = smallest(tts.orthogonal(2), lambda q: (q.abs() > 0.5).all())
    assert turned.tolist() == [[0.8, -0.6], [0.6, 0.8]]


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no shape": (lambda: tts.grid(3), "grid: shape must be whole numbers from 0, got 3"),
    "a negative size": (lambda: tts.generic((2, -1)), r"generic: shape must be whole numbers from 0, got \(2, -1\)"),
    "half a row": (lambda: tts.grid((2.5,)), r"got \(2.5,\)"),
    "true rows": (lambda: tts.grid((True,)), r"got \(True,\)"),
    "no scale": (lambda: tts.generic((2,), scale=0.0), "generic: scale must be above 0, got 0.0"),
    "a scale that is not finite": (
        lambda: tts.generic((2,), scale=float("inf")),
        "generic: scale must be a finite number, got inf",
    ),
    "no step": (lambda: tts.grid((2,), step=-0.5), "grid: step must be above 0, got -0.5"),
    "an empty range": (lambda: tts.grid((2,), low=1.0, high=0.0), "no multiple of 0.25 from 1.0 to 0.0"),
    "between two multiples": (lambda: tts.grid((2,), low=0.1, high=0.2), "no multiple of 0.25 from 0.1 to 0.2"),
    "no end": (lambda: tts.grid((2,), high=float("inf")), "grid: high must be a finite number, got inf"),
    "a word for an end": (lambda: tts.grid((2,), low="0"), "grid: low must be a finite number, got '0'"),
    "a tensor for a strategy": (
        lambda: tts.repeated(torch.ones(2, 3), count=2),
        r"repeated: rows must be a strategy such as grid\(\(2, 3\)\), got \(2, 3\) float32",
    ),
    "less than no rows": (
        lambda: tts.repeated(tts.grid((2,)), count=-1),
        "count must be a whole number from 0 on, got",
    ),
    "a mask of nothing": (lambda: tts.masks((2, 0)), r"masks: shape must be \(\.\.\., n\), with n from 1 on"),
    "a mask without a row": (lambda: tts.masks(()), r"masks: shape must be \(\.\.\., n\), with n from 1 on, got \(\)"),
    "no such mask": (lambda: tts.masks((2,), family="singel"), "masks: no family 'singel'; did you mean 'single'?"),
    "no matrix": (lambda: tts.orthogonal(0), "orthogonal: size must be a whole number from 1 on, got 0"),
    "no such matrix": (lambda: tts.orthogonal(2, family="any"), "orthogonal: no family 'any'; there are: generic, mod"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_are_refused_before_anything_is_drawn(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(TransferError, match=message.replace("?", re.escape("?"))):
        call()


@pytest.mark.parametrize("rows", [torch.zeros(0, 2), torch.tensor(1.0), [1]])
def test_repeated_refuses_what_has_no_rows(rows: Any, draws: Draws) -> None:
    with pytest.raises(TransferError, match="repeated: wanted a tensor with rows to take, the strategy drew"):
        draws(tts.repeated(st.just(rows), count=2))


QUICK = {
    "grid": tts.grid((4, 3)),
    "generic": tts.generic((4, 3)),
    "repeated": tts.repeated(tts.grid((2, 3)), count=4),
    "masks": tts.masks((4, 3)),
    "orthogonal": tts.orthogonal(3),
    "logits": tts.logits((4, 3), family="confident"),
    "features": tts.features((4, 3), family="duplicated"),
    "probabilities": tts.probabilities((4, 3), family="sparse"),
    "labels": tts.labels((4,), classes=3, family="long-tailed", ignore_index=-100),
    "batches": tts.batches(),
    "params": tts.params(),
    "trees": tts.trees(),
    "modules": tts.modules(),
    "weight_maps": tts.weight_maps(),
}


PLAIN = st.lists(st.lists(st.integers(-4, 4), min_size=3, max_size=3), min_size=4, max_size=4)


@pytest.mark.parametrize("name", QUICK)
def test_a_draw_is_quick(name: str, draws: Draws) -> None:
    """It costs at most some draws of twelve integers by Hypothesis itself, in processor time side by side."""
    costs: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(5):
        for kind, strategy in (("ours", QUICK[name]), ("plain", PLAIN)):
            begin = time.process_time()
            number = len(draws(strategy, 30))
            costs[kind].append((time.process_time() - begin) / number)
    assert min(costs["ours"]) < 8 * min(costs["plain"])  # 2.7 at most on a quiet machine
