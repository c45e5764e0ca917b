"""`cwd` against the divergence channel by channel."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.peers import same
from ttransfer._errors import TransferError
from ttransfer.losses._cwd import cwd
from ttransfer.losses._kd import kd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    channels = []
    for image, other in zip(student, teacher, strict=True):
        for s, t in zip(image, other, strict=True):
            p, q = ((x.flatten() / temperature).exp() for x in (t, s))
            p, q = p / p.sum(), q / q.sum()
            channels.append(sum((a * (a.log() - b.log()) for a, b in zip(p, q, strict=True)), p.new_zeros(())))
    return temperature**2 * torch.stack(channels).sum() / (student.shape[0] * student.shape[1])


def hot(loss: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    s, t = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gap = (s - s.mean((2, 3), keepdim=True)) - (t - t.mean((2, 3), keepdim=True))
    return functools.partial(loss, temperature=1e5)(s, t), gap.square().mean() / 2


MAPS = (torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2))
TRIALS = (
    loss_trial(cwd, MAPS, reference=slow, limits={"hot": hot}, examples=8),
    loss_trial(
        functools.partial(cwd, temperature=1.0),
        MAPS,
        reference=functools.partial(slow, temperature=1.0),
        name="cwd at 1",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_the_authors_formula() -> None:
    student, teacher = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64) * 3

    def criterion(s: Tensor, t: Tensor) -> Tensor:
        s, t = ((x / 4).flatten(2).softmax(2) for x in (s, t))
        return F.kl_div(s.log(), t, reduction="sum") / (4 * 3) * 4**2

    same(cwd, criterion, student, teacher)
    assert criterion(1e3 * student.float(), teacher.float()).isinf()
    assert cwd(1e3 * student.float(), teacher.float()).isfinite()


def test_it_is_kd_over_positions() -> None:
    student, teacher = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    rows = (x.flatten(2).flatten(0, 1) for x in (student, teacher))
    assert torch.allclose(cwd(student, teacher), kd(*rows), rtol=1e-12)


def test_a_temperature_may_be_learned() -> None:
    student, teacher = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: cwd(student, teacher, temperature=t), temperature)


def test_what_is_refused() -> None:
    maps = torch.zeros(4, 3, 8, 8)
    with pytest.raises(TransferError, match=r"cwd: .*same channels.*adapter"):
        cwd(maps, torch.zeros(4, 5, 8, 8))
    with pytest.raises(TransferError, match=r"cwd: .*same height and width"):
        cwd(maps, torch.zeros(4, 3, 4, 4))
