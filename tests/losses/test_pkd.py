"""`pkd` against NumPy-like correlations, channel by channel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from tests.support.peers import same
from ttransfer._errors import TransferError
from ttransfer.losses._pkd import pkd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor) -> Tensor:
    def entries(x: Tensor, channel: int) -> list[Tensor]:
        return [y for example in x for y in example[channel].flatten()]

    losses = []
    for k in range(student.shape[1]):
        s, t = entries(student, k), entries(teacher, k)
        mean_s, mean_t = sum(s) / len(s), sum(t) / len(t)
        both = sum((a - mean_s) * (b - mean_t) for a, b in zip(s, t, strict=True))
        own = sum((a - mean_s) ** 2 for a in s) * sum((b - mean_t) ** 2 for b in t)
        losses.append(1 - both / own**0.5)  # NaN for a constant channel
    return torch.stack(losses).mean()


MAPS = (torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2))
UP = torch.arange(8.0).reshape(2, 1, 2, 2)
TRIALS = (
    loss_trial(
        pkd,
        MAPS,
        reference=slow,
        limits={
            "other units": lambda fn: (fn(UP, 3 * UP + 5), 0.0),
            "opposite": lambda fn: (fn(UP, -UP), 2.0),
            "constant": lambda fn: (fn(torch.full_like(UP, 0.1), UP), 0.5),
        },
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_corrcoef() -> None:
    def by_torch(s: Tensor, t: Tensor) -> Tensor:
        channels = zip(s.movedim(1, 0).flatten(1), t.movedim(1, 0).flatten(1), strict=True)
        return torch.stack([1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in channels]).mean()

    same(pkd, by_torch, *torch.randn(2, 4, 3, 5, 5, dtype=torch.float64))


def test_mmrazors_formula_loses_one_entry_and_a_millionth() -> None:
    def norm(x: Tensor) -> Tensor:
        x = x.movedim(1, 0).flatten(1)
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6)

    def theirs(s: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(norm(s), norm(t)) / 2

    student, teacher = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    m = 4 * 5 * 5
    same(lambda s, t: pkd(s, t) * (m - 1) / m, theirs, 1e4 * student, 1e4 * teacher)
    small = 1e-6 * student
    assert pkd(small, teacher).item() == pytest.approx(pkd(student, teacher).item(), rel=1e-9)
    assert abs(theirs(small, teacher) - pkd(student, teacher)) > 0.1


@pytest.mark.parametrize("value", [0.0, 0.1, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_channel_is_flat(value: float, dtype: torch.dtype) -> None:
    constant = torch.full((4, 3, 5, 5), value, dtype=dtype)
    assert pkd(constant, constant).item() == 0
    assert grad(pkd)(constant, torch.randn(4, 3, 5, 5, dtype=dtype)).count_nonzero() == 0


def test_other_shapes_are_refused() -> None:
    with pytest.raises(TransferError, match=r"pkd: .*student \(4, 3, 2, 2\) float32 and teacher \(4, 5, 2, 2\)"):
        pkd(torch.zeros(4, 3, 2, 2), torch.zeros(4, 5, 2, 2))
