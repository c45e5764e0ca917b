"""`bss` against singular values, and zhijian's."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from tests.support import peers
from ttransfer._errors import TransferError
from ttransfer.losses._bss import bss
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow_bss(features: Tensor, k: int = 1) -> Tensor:
    values = list(torch.linalg.svdvals(features))
    return sum((value * value for value in values[len(values) - k :]), torch.zeros((), dtype=features.dtype))


TRIALS = (
    loss_trial(bss, reference=slow_bss, limits={"eye": lambda fn: (fn(torch.eye(3, 5).double()), 1)}),
    loss_trial(
        functools.partial(bss, k=2),
        (torch.randn(3, 4),),
        reference=functools.partial(slow_bss, k=2),
        name="bss of 2",
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 6)])
def test_gradient(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(bss, x.clone().requires_grad_(), atol=1e-8)
    torch.testing.assert_close(grad(bss)(x), grad(slow_bss)(x), rtol=1e-9, atol=1e-12)


def test_all_of_them_are_the_squared_norm() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    assert bss(x, k=3).item() == pytest.approx(x.square().sum().item(), rel=1e-12)


@pytest.mark.parametrize("x", [torch.eye(4), torch.zeros(3, 3), torch.ones(4, 3)], ids=["equal", "zero", "rank 1"])
def test_coinciding_values_have_a_finite_gradient(x: Tensor) -> None:
    assert grad(bss)(x).isfinite().all()


@pytest.mark.parametrize("shape", [(6, 4), (3, 9)])
def test_zhijian_has_the_same(shape: tuple[int, int]) -> None:
    peer = peers.theirs("zhijian.models.regularization.loss.bss", "BSS", alpha=1.0)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bss(x), peer(x), rtol=1e-10, atol=0)
    torch.testing.assert_close(grad(bss)(x), grad(peer)(x), rtol=1e-9, atol=1e-12)


def test_what_is_small_beside_the_largest_is_right_in_float32() -> None:
    x = torch.diag(torch.tensor([1e4, 1.0, 1e-2])) @ torch.linalg.qr(torch.randn(3, 3)).Q
    expected = slow_bss(x.double())
    assert bss(x).item() == pytest.approx(expected.item(), rel=1e-3)


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"bss: wanted k from 1 to min\(n, d\) = 3, got 4"):
        bss(torch.ones(3, 5), k=4)
    with pytest.raises(TransferError, match=r"bss: wanted features \(n, d\), got \(2, 3, 4, 4\).*pool the map"):
        bss(torch.ones(2, 3, 4, 4))
