"""`vid` against the Gaussian's density."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._vid import vid
from ttransfer.testing import loss_trial, parametrize_with_checks

VARIANCE = torch.tensor([0.25, 1.0, 4.0])


def slow(student_mean: Tensor, teacher: Tensor, variance: Tensor = VARIANCE) -> Tensor:
    values = []
    for mean, t in zip(student_mean, teacher, strict=True):
        for k, var in enumerate(variance.to(teacher.dtype)):
            for m, x in zip(mean[k].flatten(), t[k].flatten(), strict=True):
                density = torch.distributions.Normal(m, var.sqrt()).log_prob(x)
                values.append(-density - math.log(2 * math.pi) / 2)
    return torch.stack(values).mean()


TRIALS = (
    loss_trial(
        functools.partial(vid, variance=VARIANCE),
        (torch.randn(4, 3), torch.randn(4, 3)),
        reference=slow,
        limits={"right": lambda fn: (fn(torch.ones(2, 3), torch.ones(2, 3)), 0.0)},  # the logarithms' mean is 0
        examples=8,
    ),
    loss_trial(
        vid,
        (torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), VARIANCE),
        reference=slow,
        name="vid of maps",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_others() -> None:
    mean, teacher, variance = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5), torch.rand(3) + 0.1
    pairs = {"pair": {"student": {"io": "output", "path": "x"}, "teacher": {"io": "output", "path": "x"}}}
    other = theirs("torchdistill.losses.mid_level", "VIDLoss", pairs)
    same(vid, lambda m, t, v: other(tapped(x=(m, v[:, None, None])), tapped(x=t)), mean, teacher, variance)
    same(
        vid, lambda m, t, v: F.gaussian_nll_loss(m, t, v[:, None, None].expand_as(m), eps=0.0), mean, teacher, variance
    )


def test_a_variance_is_learned() -> None:
    mean, teacher = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    variance = (torch.rand(3, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: vid(mean, teacher, v), variance)
    # The best one is the mean squared error of its channel.
    best = (mean - teacher).square().mean((0, 2, 3)).requires_grad_()
    (slope,) = torch.autograd.grad(vid(mean, teacher, best), best)
    assert slope.abs().max() < 1e-15


def test_what_is_refused() -> None:
    maps = torch.zeros(4, 3, 2, 2)
    with pytest.raises(TransferError, match=r"vid: wanted one variance for each channel.*variance \(1, 3, 1, 1\)"):
        vid(maps, maps, torch.ones(1, 3, 1, 1))
    with pytest.raises(TransferError, match=r"vid: .*one shape, got student_mean \(4, 3, 2, 2\)"):
        vid(maps, maps[:, :2], torch.ones(3))
    with pytest.raises(TransferError, match=r"vid: wanted floating tensors, got variance \(3,\) int64"):
        vid(maps, maps, torch.ones(3, dtype=torch.int64))
