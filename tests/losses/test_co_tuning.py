"""`co_tuning` and `category_relation` against slow loops."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from ttransfer._errors import TransferError
from ttransfer.losses._co_tuning import category_relation, co_tuning
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow_co_tuning(source_logits: Tensor, labels: Tensor, relation: Tensor) -> Tensor:
    total, n = torch.zeros((), dtype=source_logits.dtype), 0
    rows = source_logits.movedim(1, -1).reshape(-1, source_logits.shape[1])
    for z, y in zip(rows, labels.reshape(-1).tolist(), strict=True):
        log_p = z - z.logsumexp(0)
        total = total - sum((relation[y, c] * log_p[c] for c in range(len(z))), torch.zeros(()))
        n += 1
    return total / n


# More new classes than old ones: a trial draws labels by the columns of the logits, and each of them has its row.
RELATION = torch.tensor(
    [[0.2, 0.3, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 0.1, 0.2, 0.7], [0.9, 0.0, 0.1, 0.0]]
)
LABELS = torch.tensor([0, 2, 1, 0, 2])
# A partial, so that no other relation is drawn: a trial knows of no table that labels index.
related, slow_related = (functools.partial(f, relation=RELATION) for f in (co_tuning, slow_co_tuning))
TRIALS = (
    loss_trial(related, (torch.randn(5, 4), LABELS), reference=slow_related),
    loss_trial(
        related,
        (torch.randn(5, 4, 2), torch.stack([LABELS, LABELS.flip(0)], 1)),
        reference=slow_related,
        tags=Tags(min_batch=1),
        name="co_tuning of maps",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_it_is_cross_entropy_with_probabilities() -> None:
    z = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(z, RELATION.double()[LABELS])
    torch.testing.assert_close(co_tuning(z, LABELS, relation=RELATION.double()), expected, rtol=1e-12, atol=0)


def test_relation_gets_no_gradient() -> None:
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    slope = grad(lambda relation: co_tuning(z, LABELS, relation=relation))(RELATION)
    assert slope.count_nonzero() == 0


def test_relation_is_the_mean_over_a_classs_rows() -> None:
    p = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(1)
    got = category_relation(p, LABELS, classes=4)
    for y in range(3):
        rows = [p[i] for i in range(5) if LABELS[i] == y]
        torch.testing.assert_close(got[y], torch.stack(rows).mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(got[3], p.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(got.sum(1), torch.ones(4).double())
    both = vmap(lambda q: category_relation(q, LABELS, classes=4))(torch.stack([p, p.flip(0)]))
    torch.testing.assert_close(both[0], got)


def test_errors() -> None:
    with pytest.raises(
        TransferError, match=r"co_tuning: wanted a relation \(new classes, 4 old classes\), got \(4, 5\)"
    ):
        co_tuning(torch.zeros(5, 4), LABELS, relation=RELATION.mT)
    with pytest.raises(TransferError, match=r"co_tuning: wanted labels of whole numbers"):
        co_tuning(torch.zeros(5, 4), torch.zeros(5), relation=RELATION)
    with pytest.raises(TransferError, match=r"category_relation: wanted probabilities .* got \(5, 4\) float32 and 0"):
        category_relation(torch.zeros(5, 4), LABELS, classes=0)
