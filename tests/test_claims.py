"""What losses say of themselves, against what their values for parts of a batch say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from ttransfer._claims import Claims, claims, claims_of, rows

N = 7


def scores() -> Tensor:
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def classes() -> Tensor:
    return torch.tensor([0, 3, -100, 1, 2, -100, 2])


def targets() -> Tensor:
    return torch.rand(N, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)

MEANS: dict[str, tuple[Callable[..., Tensor], Callable[[], Tensor], dict[str, Any]]] = {
    "cross entropy": (F.cross_entropy, classes, {}),
    "another ignored label": (F.cross_entropy, lambda: classes().where(classes() >= 0, 3), {"ignore_index": 3}),
    "weighted": (F.cross_entropy, classes, {"weight": WEIGHT}),
    "weighted and smoothed": (F.cross_entropy, classes, {"weight": WEIGHT, "label_smoothing": 0.1}),
    "smoothed": (F.cross_entropy, classes, {"label_smoothing": 0.1}),
    "class probabilities": (F.cross_entropy, lambda: F.softmax(targets(), 1), {}),
    "a partial": (functools.partial(F.cross_entropy, weight=WEIGHT), classes, {}),
    "a partial of a partial": (
        functools.partial(functools.partial(F.cross_entropy, ignore_index=3), label_smoothing=0.1),
        lambda: classes().where(classes() >= 0, 3),
        {},
    ),
    "nll": (F.nll_loss, classes, {}),
    "mse": (F.mse_loss, targets, {}),
    "l1": (F.l1_loss, targets, {}),
    "smooth l1": (F.smooth_l1_loss, targets, {"beta": 0.5}),
    "huber": (F.huber_loss, targets, {"delta": 0.5}),
    "bce": (F.binary_cross_entropy_with_logits, targets, {"pos_weight": WEIGHT}),
    "soft margin": (F.soft_margin_loss, targets, {}),
}


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_the_counted_mean_of_the_parts_is_the_whole(name: str, cut: int) -> None:
    fn, make, keywords = MEANS[name]
    x, y = scores(), make()
    known = claims_of(fn, keywords)
    assert not known.coupled
    assert known.count is not None
    whole = fn(x, y, **keywords)
    parts = [(fn(a, b, **keywords), float(known.count(a, b))) for a, b in ((x[:cut], y[:cut]), (x[cut:], y[cut:]))]
    total = sum(count for _, count in parts)
    mean = sum(torch.nan_to_num(value) * (count / total) for value, count in parts)
    assert abs(mean - whole) < 1e-12


def test_a_count_of_rows_would_be_wrong_for_ignored_labels() -> None:
    x, y = scores(), classes()
    mean = F.cross_entropy(x[:3], y[:3]) * 3 / N + F.cross_entropy(x[3:], y[3:]) * 4 / N
    assert abs(mean - F.cross_entropy(x, y)) > 1e-3


@pytest.mark.parametrize(
    ("fn", "keywords"),
    [
        (F.cross_entropy, {"reduction": "sum"}),
        (functools.partial(F.mse_loss, reduction="none"), {}),
        (F.kl_div, {}),
        (F.cosine_embedding_loss, {}),
        (lambda x: x.mean(), {}),
        (torch.nn.CrossEntropyLoss(), {}),
        (tt.align.mmd, {}),
        (tt.align.coral, {}),
    ],
)
def test_all_else_counts_as_coupled(fn: Callable[..., Any], keywords: dict[str, Any]) -> None:
    known = claims_of(fn, keywords)
    assert known.coupled
    assert known.count is None


@pytest.mark.parametrize(
    ("fn", "keywords", "labels"),
    [
        (F.cross_entropy, {}, (0, 1, -100)),
        (F.cross_entropy, {"ignore_index": 255}, (0, 1, 255)),
        (functools.partial(F.cross_entropy, ignore_index=255), {}, (0, 1, 255)),
        (functools.partial(F.cross_entropy, ignore_index=255), {"ignore_index": 1}, (0, 1, 1)),
        (F.nll_loss, {}, (0, 1, -100)),
        (F.mse_loss, {}, None),
        (tt.losses.kd, {}, None),
    ],
)
def test_where_labels_are(
    fn: Callable[..., Any], keywords: dict[str, Any], labels: tuple[int, int, int] | None
) -> None:
    assert claims_of(fn, keywords).labels == labels


def test_our_losses_declare_and_stay_themselves() -> None:
    def loss(x: Tensor) -> Tensor:
        return x.mean()

    declared = claims(coupled=False)(loss)
    assert declared is loss
    assert claims_of(loss) == Claims(False, rows, None, own=True)
    assert claims_of(functools.partial(loss)).own
    assert claims_of(tt.losses.kd).own
    assert not claims_of(F.mse_loss).own
    claims(coupled=True)(loss)
    assert claims_of(loss) == Claims(True, None, None, own=True)


@pytest.mark.parametrize(
    ("readings", "n"),
    [
        ((torch.ones(3, 2), torch.ones(5)), 3),
        ((torch.tensor(1.0), torch.ones(5)), 5),
        (([torch.ones(3)], torch.ones(5)), 5),
        ((torch.tensor(1.0),), 1),
        ((), 1),
    ],
)
def test_rows(readings: tuple[Any, ...], n: int) -> None:
    assert rows(*readings) == n
