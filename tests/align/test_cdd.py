"""`cdd` against the paper's sums over pairs of classes and those of the authors' code, and skada beside it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from tests.align.test_mmd import SCALES, mean_square
from tests.support.peers import theirs
from tests.support.steps import refused
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


def slow_code(source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor, classes: int = 4) -> Tensor:
    """After the authors' code: each pair of classes is a problem of its own, with its own width."""

    def gap(c: int, d: int) -> Tensor:
        s = [row for row, label in zip(source, source_labels.tolist(), strict=True) if label == c]
        t = [row for row, label in zip(target, target_labels.tolist(), strict=True) if label == d]

        def squares(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
            return torch.stack([((x - y) ** 2).sum() for x in xs for y in ys])

        ss, tt, st = squares(s, s), squares(t, t), squares(s, t)
        width = (ss.sum() + tt.sum() + 2 * st.sum()).detach() / ((len(s) + len(t)) * (len(s) + len(t) - 1))
        means = [torch.stack([(-x / (width / 4 * 2**i)).exp() for i in range(5)]).sum(0).mean() for x in (ss, tt, st)]
        return means[0] + means[1] - 2 * means[2]

    both = sorted(set(source_labels.tolist()) & set(target_labels.tolist()) - {-1})
    total = 0 * source.sum()
    for c, d in itertools.product(both, both):
        total = total + (gap(c, c) / classes if c == d else -gap(c, d) / (classes * (classes - 1)))
    return total


HELD = {"gradcheck": "the width of the batch is held constant"}
EXAMPLE = (torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 1]), torch.tensor([1, 0, 2, 0, 1]))
in_code = functools.partial(cdd, classes=4, variant="code")
TRIALS = (
    loss_trial(cdd, EXAMPLE, reference=slow, expected_failed_checks=HELD, examples=4),
    loss_trial(in_code, EXAMPLE, reference=slow_code, expected_failed_checks=HELD, name="cdd as in code", examples=4),
)


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


def test_code_divides_by_all_classes_and_has_a_width_for_each_pair() -> None:
    s, t, y, z = (x.double() if x.is_floating_point() else x for x in EXAMPLE)
    few = in_code(s, t, torch.tensor([0, 1, -1, 1]), torch.tensor([1, 0, -1, 0, -2]))
    torch.testing.assert_close(few, in_code(s[[0, 1, 3]], t[[0, 1, 3]], y[[0, 1, 3]], z[[0, 1, 3]]), rtol=1e-12, atol=0)
    # With all classes in the batch and one width for all, it is the paper's.
    whole = cdd(s, t, y, z, bandwidth=1.3, classes=3, variant="code")
    torch.testing.assert_close(whole, cdd(s, t, y, z, bandwidth=1.3), rtol=1e-12, atol=0)
    assert abs(cdd(s, t, y, z, classes=3, variant="code") - cdd(s, t, y, z)) > 0.1
    # A class that is narrow and far away has the width of its own spread.
    far = torch.tensor([[1000.0], [1000.01]])
    values = [cdd(x, x + 0.02, y[:2] * 0, y[:2] * 0, classes=1, variant="code") for x in (far, far - 1000)]
    assert values[0].item() == pytest.approx(values[1].item(), rel=0.02)
    assert in_code(s, t, y * 0, z * 0 + 1) == 0
    assert grad(in_code)(s, t, y * 0, z * 0 + 1).count_nonzero() == 0
    assert in_code(s * 0, t * 0, y, z) == 0


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
    refused(lambda: cdd(s, t, y, z, variant="code"), "cdd: wanted classes= for variant 'code'", "got None")
    refused(lambda: cdd(s, t, y, z, classes=3), "and for no other", "got 3 with variant 'paper'")
    refused(lambda: cdd(s, t, y, z, classes=2, variant="code"), "cdd: wanted source_labels from 0 to 1")
