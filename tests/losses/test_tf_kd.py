"""`tf_kd` against slow loops and the authors' formula."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value, vmap

from ttransfer._errors import TransferError
from ttransfer.losses._tf_kd import tf_kd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(
    logits: Tensor, labels: Tensor, correct: float = 0.99, temperature: float = 20.0, code: bool = False
) -> Tensor:
    total = torch.zeros((), dtype=logits.dtype)
    n, classes = logits.shape
    for z, y in zip(logits, labels.tolist(), strict=True):
        odds = [math.exp((correct if j == y else (1 - correct) / (classes - 1)) / temperature) for j in range(classes)]
        log_q = (z if code else z / temperature).log_softmax(0)
        for j in range(classes):
            p = odds[j] / sum(odds)
            total = total + p * (math.log(p) - log_q[j])
    return total / (n * classes if code else n)


MAPS = (torch.randn(3, 4, 2, 2), torch.randint(0, 4, (3, 2, 2), generator=torch.Generator().manual_seed(0)))
TRIALS = (
    loss_trial(tf_kd, reference=slow),
    loss_trial(
        functools.partial(tf_kd, variant="code"),
        reference=functools.partial(slow, code=True),
        name="tf_kd as code",
        examples=8,
    ),
    loss_trial(
        functools.partial(tf_kd, temperature=1.0, correct=0.9),
        reference=functools.partial(slow, temperature=1.0, correct=0.9),
        name="tf_kd at 1",
        examples=8,
    ),
    loss_trial(tf_kd, MAPS, name="tf_kd of maps", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, dtype=torch.float64, generator=generator) * 2
    return logits, torch.randint(0, 5, (6,), generator=generator)


def authors(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The virtual teacher written out; `F.kl_div` by its mean over all elements."""
    teacher = torch.full_like(logits, 0.01 / (logits.shape[1] - 1))
    teacher = torch.where(F.one_hot(labels, logits.shape[1]).bool(), 0.99, teacher)
    return F.kl_div(logits.log_softmax(1), (teacher / temperature).softmax(1), reduction="none").mean()


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_the_authors_formula_agrees(temperature: float) -> None:
    logits, labels = case()
    got = grad_and_value(lambda z: tf_kd(z, labels, temperature=temperature, variant="code"))(logits)
    expected = grad_and_value(lambda z: authors(z, labels, temperature))(logits)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_maps_are_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (3, 2, 2), generator=generator)
    rows = tf_kd(maps.movedim(1, -1).reshape(-1, 4), labels.flatten())
    torch.testing.assert_close(tf_kd(maps, labels), rows, rtol=1e-12, atol=0)


def test_numbers_may_be_tensors() -> None:
    logits, labels = case()
    corrects = torch.tensor([0.9, 0.99], dtype=torch.float64)
    got = vmap(lambda a: tf_kd(logits, labels, correct=a))(corrects)
    torch.testing.assert_close(got, torch.stack([slow(logits, labels, correct=a) for a in (0.9, 0.99)]))
    single = logits.float()
    assert tf_kd(single, labels, correct=corrects[0], temperature=corrects[1]).dtype == torch.float32


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"tf_kd: wanted at least two classes, got logits \(4, 1\)"):
        tf_kd(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(TransferError, match=r"tf_kd: wanted variant"):
        tf_kd(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), variant="mean")  # pyright: ignore[reportArgumentType]
