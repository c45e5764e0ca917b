"""`sinkhorn_divergence` against scaled kernels, POT, geomloss, and the linear programme that it comes near to."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align._sinkhorn import sinkhorn_divergence
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(source: Tensor, target: Tensor, epsilon: float = 100.0) -> Tensor:
    """Sinkhorn's own iteration, which scales the rows and columns of exp(-cost / epsilon) in turn."""

    def transport(x: Tensor, y: Tensor) -> Tensor:
        cost = torch.stack([torch.stack([((a - b) ** 2).sum() / 2 for b in y]) for a in x])
        kernel = (-cost / epsilon).exp()
        v = torch.ones(len(y), dtype=torch.float64)
        u = v
        for _ in range(100):
            u = 1 / (kernel @ v / len(y))
            v = 1 / (kernel.T @ u / len(x))
        return epsilon * (u.log().mean() + v.log().mean())

    return transport(source, target) - (transport(source, source) + transport(target, target)) / 2


TRIALS = (
    loss_trial(
        functools.partial(sinkhorn_divergence, epsilon=100.0, iterations=32),
        reference=slow,
        limits={
            "large temperature, distance of means": lambda fn: (
                fn(torch.zeros(1, 2).double(), torch.tensor([[3.0, 4.0], [1.0, 2.0]]).double(), epsilon=1e6),
                13 / 2,
            )
        },
        name="sinkhorn_divergence",
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def pair() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 3).double(), torch.randn(7, 3).double() + 1


def test_pot_does_not_halve() -> None:
    s, t = pair()
    ours = functools.partial(sinkhorn_divergence, epsilon=0.5, iterations=300)
    solve = functools.partial(theirs, "ot", "solve_sample", reg=1.0, debias=True, max_iter=2000, tol=1e-14)
    same(lambda s, t: 2 * ours(s, t), lambda s, t: solve(s, t).value, s, t)
    # It calls this one a divergence too, and leaves out the entropies.
    sharp = theirs("ot.bregman", "empirical_sinkhorn_divergence", s, t, 1.0, stopThr=1e-13).item()
    assert abs(sharp / solve(s, t).value.item() - 1) > 0.02


def test_geomloss() -> None:
    s, t = pair()
    other = functools.partial(theirs, "geomloss", "SamplesLoss", "sinkhorn", p=2, blur=1.0)
    ours = functools.partial(sinkhorn_divergence, epsilon=1.0, iterations=200)
    same(ours, other(scaling=0.999), s, t, relative=2e-4)  # its gradient is what is not closer
    assert abs(other(scaling=0.5)(s, t).item() / ours(s, t).item() - 1) > 1e-3


def test_small_temperature_is_transport() -> None:
    s, t = torch.randn(6, 3).double(), torch.randn(6, 3).double() + 1
    cost = torch.cdist(s, t).square()
    rows, columns = linear_sum_assignment(cost.numpy())
    wanted = cost[rows, columns].mean().item() / 2
    assert sinkhorn_divergence(s, t, epsilon=1e-3, iterations=500).item() == pytest.approx(wanted, rel=1e-2)


def test_iterations_by_default() -> None:
    s, t = torch.randn(64, 16).double(), 2 * torch.randn(48, 16).double() + 1
    some, many = (
        torch.func.grad_and_value(functools.partial(sinkhorn_divergence, iterations=n))(s, t) for n in (50, 999)
    )
    assert some[1].item() == pytest.approx(many[1].item(), rel=1e-6)
    assert torch.allclose(some[0], many[0], atol=1e-4)
    assert torch.allclose(sinkhorn_divergence(3 * s, 3 * t), 9 * some[1], rtol=1e-9)


def test_no_iterations_are_refused() -> None:
    with pytest.raises(
        TransferError, match="sinkhorn_divergence: wanted a whole number of at least 1 for iterations, got 0"
    ):
        sinkhorn_divergence(torch.zeros(2, 2), torch.zeros(2, 2), iterations=0)
