"""What the names and an example say of a loss's arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ttransfer as tt
from ttransfer.testing import loss_trial

G = torch.Generator().manual_seed(0)
NORMAL = torch.randn(4, 3, generator=G)


def taken(fn: Callable[..., Any], example: Any = None) -> str:
    return loss_trial(fn, example).taken


def ranking(scores: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.multi_margin_loss(scores, targets)


def prefixed(s_logits: Tensor, t_logits: Tensor, labels: Tensor, T: float) -> Tensor:
    log = (s_logits / T).log_softmax(1)
    return nn.functional.cross_entropy(s_logits, labels) - (log * t_logits.softmax(1)).mean()


def maps(f_s: Tensor, f_t: Tensor) -> Tensor:
    a, b = (x.square().sum(1).flatten(1) for x in (f_s, f_t))
    return (a - b).square().mean() + 0 * f_s.shape[3]


def two_domains(source_features: Tensor, target_features: Tensor, source_labels: Tensor) -> Tensor:
    return source_features.mean() - target_features.mean() + 0 * source_labels.sum()


def paired(source: Tensor, target: Tensor) -> Tensor:
    return (source - target).square().mean()


def fused(hidden: Tensor, labels: Tensor) -> Tensor:
    return hidden.flatten(1).std(1).mean() + 0 * labels.sum()


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (tt.losses.kd, "student: logits (n, c), teacher: logits (n, c)"),
        (ranking, "scores: logits (n, c), targets: labels (n)"),
        (prefixed, "s_logits: logits (n, c), t_logits: logits (n, c), labels: labels (n), T: 2.0"),
        (maps, "f_s: features (n, d, 3, 2), f_t: features (n, d, 3, 2)"),
        (
            two_domains,
            "source_features: features (n, d), target_features: features (m, d), source_labels: labels (n)",
        ),
        (paired, "source: features (n, d), target: features (m, d), m = n"),
        (nn.CrossEntropyLoss(), "input: logits (n, c), target: labels (n)"),
        (tt.align.coral, "source: features (n, d), target: features (m, d); at least 2 rows"),
    ],
    ids=lambda x: x if isinstance(x, str) else getattr(x, "__name__", "module"),
)
def test_names_and_trial_decide(fn: Callable[..., Any], says: str) -> None:
    assert taken(fn) == says


@pytest.mark.parametrize(
    ("example", "says"),
    [
        ((NORMAL, torch.arange(4) % 2), "hidden: features (n, 3), labels: labels (n)"),
        ({"hidden": NORMAL.abs(), "labels": torch.arange(4) % 2}, "hidden: weights (n, 3), labels: labels (n)"),
        ((NORMAL.softmax(1), torch.arange(4) > 1), "hidden: probabilities (n, 3), labels: mask (n)"),
        ((NORMAL.expand(2, 4, 3), torch.arange(2)), "hidden: features (n, 4, 3), labels: labels (n)"),
    ],
    ids=["tuple", "mapping", "probabilities", "tokens"],
)
def test_an_example_decides(example: Any, says: str) -> None:
    assert taken(fused, example) == says


def test_bad_examples_and_losses_are_refused() -> None:
    def needs(student: Tensor, *, power: int) -> Tensor:
        return student.mean() ** power

    def hopeless(one: Tensor, two: Tensor) -> Tensor:
        raise ValueError(f"never {tuple(one.shape)} and {tuple(two.shape)}")

    for call, text in {
        "keyword": (lambda: loss_trial(needs), r"power= has no default; give it with functools.partial\(needs, power="),
        "nothing": (lambda: loss_trial(hopeless), "no arguments were found .* it raised ValueError: never .* example"),
        "missing": (lambda: loss_trial(fused, {"hidden": NORMAL}), "the example has no 'labels'; it has: hidden"),
        "nan": (lambda: loss_trial(fused, (NORMAL * float("nan"), torch.arange(4))), "the example's hidden holds NaN"),
    }.values():
        with pytest.raises(tt.TransferError, match=text):
            call()


def test_logits_of_a_domain_are_logits_in_an_example_too() -> None:
    def apart(source_logits: Tensor, target_logits: Tensor) -> Tensor:
        return source_logits.softmax(1).mean(0).sub(target_logits.softmax(1).mean(0)).square().sum()

    wanted = "source_logits: logits (n, 3), target_logits: logits (m, 3)"
    assert taken(apart, (torch.randn(4, 3, generator=G), torch.randn(5, 3, generator=G))) == wanted
    assert "target_logits: logits (m, c)" in taken(apart)
