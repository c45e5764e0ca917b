"""`kta` and `affinity` against their formulas in slow loops."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, tapped, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._kta import affinity, kta
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor) -> Tensor:
    numbers = [
        (a - b).abs()
        for s, t in zip(student.flatten(1), teacher.detach().flatten(1), strict=True)
        for a, b in zip(s / s.norm(), t / t.norm(), strict=True)
    ]
    return torch.stack(numbers).mean()


def slow_affinity(student: Tensor, teacher: Tensor, variant: str = "paper") -> Tensor:
    def table(one: Tensor, other: Tensor) -> Tensor:
        return torch.stack([torch.stack([(p * q).sum() for q in other]) for p in one])

    def positions(image: Tensor) -> Tensor:
        at = [x / x.norm() for x in image.flatten(1).T]
        return table(torch.stack(at), torch.stack(at))

    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student, teacher.detach(), strict=True):
        count = s[0].numel()
        if variant == "paper":
            total = total + sum((row / count).norm() for row in positions(s) - positions(t))
        else:
            for a, b in zip(s.flatten(1), t.flatten(1), strict=True):
                a, b = (a / a.norm())[:, None], (b / b.norm())[:, None]
                total = total + ((table(a, a) - table(b, b)) / count).norm()
    return total / len(student)


MAPS = (torch.randn(4, 3, 2, 3), torch.randn(4, 3, 2, 3))
TRIALS = (
    loss_trial(kta, MAPS, reference=slow, examples=8),
    loss_trial(affinity, MAPS, reference=slow_affinity, examples=8),
    loss_trial(
        functools.partial(affinity, variant="code"),
        MAPS,
        reference=functools.partial(slow_affinity, variant="code"),
        name="affinity of the code",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_kta_beside_torchdistill() -> None:
    other = theirs("torchdistill.losses.mid_level", "KTALoss", knowledge_translator_path="t", feature_adapter_path="s")
    same(kta, lambda s, t: other(tapped(s=s), tapped(t=t)), torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4))


def test_an_example_of_zeros() -> None:
    other = theirs("torchdistill.losses.mid_level", "KTALoss", knowledge_translator_path="t", feature_adapter_path="s")
    student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 0.0]])
    assert kta(student, teacher).item() == 0.5
    assert other(tapped(s=student), tapped(t=teacher)).isnan()


def test_affinity_beside_torchdistill() -> None:
    student, teacher = torch.randn(5, 6, 4, 4), torch.randn(5, 6, 4, 4)
    found, wanted = [], []
    for one, into in ((functools.partial(affinity, variant="code"), found), (_torchdistills, wanted)):
        leaf = student.double().requires_grad_()
        value = one(leaf, teacher.double())
        into += [value.detach().double(), *torch.autograd.grad(value, leaf)]
    # It adds up in float32 whatever it is given.
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def _torchdistills(student: Tensor, teacher: Tensor) -> Tensor:
    return theirs("torchdistill.losses.mid_level", "AffinityLoss", "x", "x")(tapped(x=student), tapped(x=teacher))


def test_torchdistills_gradient_is_nan_where_a_channel_is_right() -> None:
    maps = torch.randn(2, 3, 2, 2, requires_grad=True)
    zero = torch.cat([torch.zeros(2, 1, 2, 2), torch.ones(2, 2, 2, 2)], 1)
    (slope,) = torch.autograd.grad(_torchdistills(maps * zero, maps.detach()), maps)
    assert slope.isnan().any()
    (slope,) = torch.autograd.grad(affinity(maps * zero, maps, variant="code"), maps)
    assert slope.isfinite().all()


def test_paper_sees_a_rotation_of_channels_not_at_all() -> None:
    student = torch.randn(3, 5, 2, 2, dtype=torch.float64)
    turned = torch.einsum("cd,ndhw->nchw", torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q, student)
    assert affinity(turned, student).item() < 1e-12
    assert affinity(turned, student, variant="code").item() > 0.1


def test_what_is_refused() -> None:
    maps = torch.zeros(4, 3, 8, 8)
    assert affinity(maps, torch.zeros(4, 5, 8, 8)).item() == 0
    with pytest.raises(TransferError, match="affinity: wanted feature maps of the same channels"):
        affinity(maps, torch.zeros(4, 5, 8, 8), variant="code")
    with pytest.raises(TransferError, match="affinity: wanted variant 'paper' or 'code', got 'sum'"):
        affinity(maps, maps, variant="sum")  # type: ignore[arg-type]
    with pytest.raises(TransferError, match="kta: wanted tensors of one shape"):
        kta(maps, maps[:, :2])
