"""`cdd` against the paper's sums over pairs of classes, and skada beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from tests.align.test_mmd import SCALES, mean_square
from tests.support.peers import theirs
from ttransfer._errors import TransferError
from ttransfer.align._cdd import cdd
from ttransfer.align._mmd import mmd
from ttransfer.testing import loss_trial, parametrize_with_checks

Kernel = Callable[[Tensor, Tensor], Tensor]


def by_classes(source: Tensor, target: Tensor, y: Tensor, z: Tensor, k: Kernel) -> Tensor:
    def mean(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
        return torch.stack([k(a, b) for a in xs for b in ys]).mean()

    def rows(x: Tensor, labels: Tensor, c: int) -> list[Tensor]:
        return [row for row, label in zip(x, labels.tolist(), strict=True) if label == c]

    def gap(c: int, d: int) -> Tensor:
        s, t = rows(source, y, c), rows(target, z, d)
        return mean(s, s) + mean(t, t) - 2 * mean(s, t)

    classes = sorted(c for c in set(y.tolist()) & set(z.tolist()) if c >= 0)
    if not classes:
        return 0 * source.sum()
    value = torch.stack([gap(c, c) for c in classes]).mean()
    if len(classes) > 1:
        value = value - torch.stack([gap(c, d) for c, d in itertools.permutations(classes, 2)]).mean()
    return value


def slow(source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor) -> Tensor:
    width = mean_square(torch.cat([source, target]))

    def k(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([(-((x - y) ** 2).sum() / (2 * c * width)).exp() for c in SCALES]).sum()

    return by_classes(source, target, source_labels, target_labels, k)


HELD = {"gradcheck": "the width of the batch is held constant"}
EXAMPLE = (torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 1]), torch.tensor([1, 0, 2, 0, 1]))
TRIALS = (loss_trial(cdd, EXAMPLE, reference=slow, expected_failed_checks=HELD, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_rows_that_do_not_count() -> None:
    s, t, y, z = (x.double() if x.is_floating_point() else x for x in EXAMPLE)
    few = cdd(s, t, torch.tensor([0, 1, -1, 1]), torch.tensor([1, 0, -1, 0, -2]), bandwidth=1.0)
    kept = cdd(s[[0, 1, 3]], t[[0, 1, 3]], y[[0, 1, 3]], z[[0, 1, 3]], bandwidth=1.0)
    assert torch.allclose(few, kept, rtol=1e-12)
    one_class = cdd(s, t, y * 0, z * 0, bandwidth=1.0)
    assert torch.allclose(one_class, mmd(s, t, bandwidth=1.0), rtol=1e-12)
    assert cdd(s, t, y * 0, z * 0 + 1) == 0
    assert grad(cdd)(s, t, y * 0, z * 0 + 1).count_nonzero() == 0


def test_skada_is_wrong() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(8, 2, generator=generator), torch.randn(8, 2, generator=generator) + 0.2
    labels = torch.tensor([0, 1] * 4)
    source[:, 0] += 3 * labels
    target[:, 0] += 3 * labels
    clusters = theirs("skada.deep.utils", "SphericalKMeans", 2, random_state=0)
    clusters.fit(target)
    found = clusters.predict(target)
    other = theirs(
        "skada.deep.losses", "cdd_loss", labels, source, target, clusters, sigmas=[2.0], distance_threshold=2.0
    )
    laplace = by_classes(source, target, labels, found, lambda x, y: (-(x - y).norm() / 2.0).exp())
    assert [other.item(), laplace.item()] == pytest.approx([0.6048, -0.4051], abs=1e-3)


def test_labels_are_refused() -> None:
    s, t, y, z = EXAMPLE
    with pytest.raises(TransferError, match="cdd: wanted labels"):
        cdd(s, t, y, z[:4])
