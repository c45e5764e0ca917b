"""Bi-Tuning's two contrasts against slow loops, and TLlib's way of writing them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from ttransfer._errors import TransferError
from ttransfer.losses._bi_tuning import categorical_contrast, contrastive_cross_entropy
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow_unit(x: Tensor) -> Tensor:
    return x / x.norm() if bool(x.detach().any()) else x


def slow_scores(own: Tensor, positives: list[Tensor], others: list[Tensor], temperature: float) -> Tensor:
    every = torch.stack([own, *positives, *others]) / temperature
    return sum(((every.logsumexp(0) - p / temperature) for p in (own, *positives)), torch.zeros(())) / (
        1 + len(positives)
    )


def slow_categorical(
    student: Tensor, keys: Tensor, labels: Tensor, memory: Tensor, temperature: float = 0.07
) -> Tensor:
    rows = []
    for z, k, y in zip(student, keys.detach(), labels.tolist(), strict=True):
        z, k = slow_unit(z), slow_unit(k)
        by_class = [[z @ slow_unit(m) for m in of_class] for of_class in memory.detach()]
        others = [score for c, scores in enumerate(by_class) if c != y for score in scores]
        rows.append(slow_scores(z @ k, by_class[y], others, temperature))
    return torch.stack(rows).mean()


def slow_cross_entropy(
    student: Tensor, labels: Tensor, prototypes: Tensor, memory: Tensor, temperature: float = 0.07
) -> Tensor:
    rows = []
    for h, y in zip(student, labels.tolist(), strict=True):
        w = slow_unit(prototypes[y].detach())
        by_class = [[w @ slow_unit(m) for m in of_class] for of_class in memory.detach()]
        others = [score for c, scores in enumerate(by_class) if c != y for score in scores]
        rows.append(slow_scores(slow_unit(h) @ w, by_class[y], others, temperature))
    return torch.stack(rows).mean()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 2, 1, 0, 2])
# As wide as there are classes, for a trial takes the width of logits for their number.
MEMORY, HEAD = drawn(3, 2, 3, seed=7), drawn(3, 3, seed=8)
CATEGORICAL = (drawn(5, 3), drawn(5, 3, seed=1), LABELS)
TRIALS = (
    loss_trial(
        categorical_contrast,
        (*CATEGORICAL, MEMORY),
        tags=Tags(detaches=("keys", "memory")),
        reference=slow_categorical,
        examples=10,
    ),
    loss_trial(
        contrastive_cross_entropy,
        (drawn(5, 3), LABELS, HEAD, MEMORY),
        tags=Tags(detaches=("prototypes", "memory")),
        reference=slow_cross_entropy,
        examples=10,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_lowest_is_the_number_of_positives() -> None:
    x = torch.eye(2, 4, dtype=torch.float64)
    memory = torch.stack([x[:1].expand(3, 4), x[1:].expand(3, 4)])
    labels = torch.tensor([0, 1])
    for value in (
        categorical_contrast(x, x, labels, memory, temperature=0.01),
        contrastive_cross_entropy(x, labels, x, memory, temperature=0.01),
    ):
        assert value.item() == pytest.approx(math.log(4), rel=1e-9)


def test_tllib_subtracts_the_entropy_of_its_labels() -> None:
    """Its log-probabilities, as it orders them, and the divergence that its example trains on."""
    queue_z = F.normalize(MEMORY, dim=2).permute(2, 0, 1)  # (d, classes, K)
    z, k = (F.normalize(x, dim=1) for x in CATEGORICAL[:2])
    rows = []
    for i, c in enumerate(LABELS.tolist()):
        negative = torch.cat([queue_z[:, :c], queue_z[:, c + 1 :]], 1).flatten(1)
        rows.append(torch.cat([(z[i] @ k[i])[None], z[i] @ queue_z[:, c], z[i] @ negative]))
    wanted = torch.zeros(5, 7, dtype=torch.float64)
    wanted[:, :3] = 1 / 3
    theirs = F.kl_div((torch.stack(rows) / 0.07).log_softmax(1), wanted, reduction="batchmean")
    ours = categorical_contrast(*CATEGORICAL, MEMORY)
    assert (ours - theirs).item() == pytest.approx(math.log(3), rel=1e-9)


def test_only_the_queries_learn() -> None:
    slopes = grad(categorical_contrast, (0, 1, 3))(*CATEGORICAL, MEMORY)
    assert [bool(s.any()) for s in slopes] == [True, False, False]
    slopes = grad(contrastive_cross_entropy, (0, 2, 3))(drawn(5, 3), LABELS, HEAD, MEMORY)
    assert [bool(s.any()) for s in slopes] == [True, False, False]


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"wanted rows \(n, d\) and a memory \(classes, K, d\), got .*\(3, 3\)"):
        categorical_contrast(*CATEGORICAL, HEAD)
    with pytest.raises(TransferError, match=r"wanted prototypes \(3 classes, 3\), got \(2, 3\)"):
        contrastive_cross_entropy(drawn(5, 3), LABELS, HEAD[:2], MEMORY)
    with pytest.raises(TransferError, match=r"categorical_contrast: wanted one label for each row"):
        categorical_contrast(*CATEGORICAL[:2], LABELS[:3], MEMORY)
