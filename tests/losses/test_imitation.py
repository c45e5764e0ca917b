"""`feature_imitation` against slow loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from ttransfer._errors import TransferError
from ttransfer.losses._imitation import feature_imitation
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow_imitation(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    total, number = torch.zeros((), dtype=student.dtype), 0.0
    n, c, h, w = student.shape
    for i, y, x in itertools.product(range(n), range(h), range(w)):
        m = float(mask[i, y, x])
        number += m
        for j in range(c):
            total = total + m * (student[i, j, y, x] - teacher[i, j, y, x].detach()) ** 2
    return total / (2 * number)


MAPS = (torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2))
MASK = torch.tensor([[[1, 1], [0, 1]]] * 4).float()
TRIALS = (
    loss_trial(feature_imitation, (*MAPS, MASK), reference=slow_imitation, examples=10),
    loss_trial(feature_imitation, (*MAPS, MASK.bool()), reference=slow_imitation, name="imitation, bool", examples=6),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_an_empty_mask_is_0_with_no_slope() -> None:
    none = torch.zeros(4, 2, 2)
    assert feature_imitation(*MAPS, none).item() == 0
    assert grad(feature_imitation)(*MAPS, none).count_nonzero() == 0


def test_a_full_mask_is_half_the_squared_error_of_all_channels() -> None:
    s, t = (x.double() for x in MAPS)
    full = torch.ones(4, 2, 2)
    expected = 3 / 2 * torch.nn.functional.mse_loss(s, t)
    torch.testing.assert_close(feature_imitation(s, t, full), expected, rtol=1e-12, atol=0)


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"feature_imitation: wanted a mask \(4, 2, 2\), .* got \(4, 2\)"):
        feature_imitation(*MAPS, MASK[:, 0])
    with pytest.raises(TransferError, match=r"feature_imitation: wanted feature maps of the same channels.*adapter"):
        feature_imitation(MAPS[0][:, :2], MAPS[1], MASK)
