"""`jmmd` and `jmmd_unbiased` against the paper's sums over pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.align.test_mmd import HELD, SCALES, mean_square, pair
from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align._jmmd import jmmd, jmmd_unbiased
from ttransfer.align._mmd import mmd, mmd_unbiased
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(source: Tensor, target: Tensor, apart: bool = False) -> Tensor:
    widths = [mean_square(torch.cat([source[:, k], target[:, k]])) for k in range(source.shape[1])]

    def k(x: Tensor, y: Tensor) -> Tensor:
        product = torch.ones((), dtype=torch.float64)
        for a, b, width in zip(x, y, widths, strict=True):
            product = product * sum((-((a - b) ** 2).sum() / (2 * c * width)).exp() for c in SCALES)
        return product

    def mean(xs: Tensor, ys: Tensor, leave: bool) -> Tensor:
        pairs = [(i, j) for i in range(len(xs)) for j in range(len(ys)) if not (leave and i == j)]
        return torch.stack([k(xs[i], ys[j]) for i, j in pairs]).mean()

    return mean(source, source, apart) + mean(target, target, apart) - 2 * mean(source, target, False)


EXAMPLE = (torch.randn(3, 2, 3), torch.randn(4, 2, 3))
TRIALS = (
    loss_trial(jmmd, EXAMPLE, reference=slow, expected_failed_checks=HELD, examples=4),
    loss_trial(
        jmmd_unbiased, EXAMPLE, reference=functools.partial(slow, apart=True), expected_failed_checks=HELD, examples=4
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_pytorch_adapt() -> None:
    (s1, t1), (s2, t2) = pair(5, 7, 3), pair(5, 7, 2, seed=1)
    widths = [(torch.cdist(s, s).square().median() / 2).sqrt() for s in (s1, s2)]
    other = theirs("pytorch_adapt.layers", "MMDLoss", mmd_type="quadratic")
    same(
        lambda s: jmmd_unbiased([s, s2], [t1, t2], bandwidth=widths, scales=(1.0,)),
        lambda s: other([s, s2], [t1, t2]),
        s1,
    )


@pytest.mark.parametrize(("joint", "single"), [(jmmd, mmd), (jmmd_unbiased, mmd_unbiased)])
def test_one_layer(joint: Callable[..., Tensor], single: Callable[..., Tensor]) -> None:
    s, t = pair(5, 7, 3)
    assert torch.equal(joint([s], [t], bandwidth=2.0), single(s, t, bandwidth=2.0))
    assert joint([s.bfloat16()], [t.bfloat16()]).dtype == torch.bfloat16


def test_other_layers_are_refused() -> None:
    x = torch.zeros(3, 2)
    for source, target, widths in (([x, x], [x], None), ([], [], None), ([x], [x], [1.0, 2.0])):
        with pytest.raises(TransferError, match=r"jmmd: wanted features of the same layers"):
            jmmd(source, target, bandwidth=widths)
    with pytest.raises(TransferError, match=r"jmmd: wanted the same rows in all layers, got source \[\(3, 2\) float32"):
        jmmd([x, x[:2]], [x, x])
