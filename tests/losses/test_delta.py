"""`delta` against slow loops, and zhijian's."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from tests.support import peers
from ttransfer._errors import TransferError
from ttransfer.losses._delta import delta
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow_delta(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    n, c = student.shape[:2]
    total = torch.zeros((), dtype=student.dtype)
    for i in range(n):
        for j in range(c):
            gap = (student[i, j] - teacher[i, j].detach()).reshape(-1)
            a = 1 / c if weights is None else weights[j]
            total = total + c * a / len(gap) * sum((x * x for x in gap), torch.zeros((), dtype=student.dtype))
    return total / (2 * n)


MAPS = (torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2))
WEIGHTS = torch.tensor([0.25, 0.25, 0.5])
TRIALS = (
    loss_trial(delta, reference=slow_delta),
    loss_trial(delta, MAPS, reference=slow_delta, name="delta of maps", examples=8),
    loss_trial(
        functools.partial(delta, weights=WEIGHTS),
        MAPS,
        reference=functools.partial(slow_delta, weights=WEIGHTS),
        name="delta with weights",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_uniform_weights_are_no_weights() -> None:
    s, t = (x.double() for x in MAPS)
    torch.testing.assert_close(
        delta(s, t, weights=torch.full((3,), 1 / 3, dtype=torch.float64)), delta(s, t), rtol=1e-12, atol=0
    )


def test_peers_sum_over_the_batch() -> None:
    peer = peers.theirs("zhijian.models.regularization.loss.delta", "DELTA", [])
    s, t = (torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    # 4 rows and 4 positions.
    theirs = lambda x: peer.reg_fea_map([t], [x]) / 16  # noqa: E731
    torch.testing.assert_close(delta(s, t), theirs(s), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad(delta)(s, t), grad(theirs)(s), rtol=1e-10, atol=1e-14)
    twice = (torch.cat([s, s]), torch.cat([t, t]))
    assert peer.reg_fea_map([twice[1]], [twice[0]]) / peer.reg_fea_map([t], [s]) == pytest.approx(2)
    assert delta(*twice).item() == pytest.approx(delta(s, t).item())


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"delta: wanted 3 weights, one for each channel, got \(4,\)"):
        delta(*MAPS, weights=torch.ones(4))
    with pytest.raises(TransferError, match=r"delta: wanted tensors of one shape"):
        delta(MAPS[0], MAPS[1][:, :2])
