"""`self_distillation` against the formula in slow loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._self_distillation import self_distillation
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for exits, t in zip(student, teacher.detach(), strict=True):
        for s in exits:
            log_p, log_q = (t / temperature).log_softmax(0), (s / temperature).log_softmax(0)
            total = total + sum(a.exp() * (a - b) for a, b in zip(log_p, log_q, strict=True))
    return temperature**2 * total / len(student)


TRIALS = (
    loss_trial(self_distillation, (torch.randn(4, 3, 5), torch.randn(4, 5)), reference=slow, examples=8),
    loss_trial(
        self_distillation,
        (torch.randn(4, 1, 5), torch.randn(4, 5)),
        reference=slow,
        name="self_distillation of one exit",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_each_exit_counts_once() -> None:
    exits, deepest = [torch.randn(6, 5, dtype=torch.float64) for _ in range(4)], torch.randn(6, 5, dtype=torch.float64)
    once = sum(kd(x, deepest, temperature=2.0) for x in exits)
    torch.testing.assert_close(self_distillation(exits, deepest, temperature=2.0), once, rtol=1e-12, atol=0)
    torch.testing.assert_close(self_distillation(torch.stack(exits, 1), deepest, temperature=2.0), once)
    assert self_distillation([deepest, deepest], deepest).item() == 0


def test_the_deepest_exit_is_not_pulled() -> None:
    exits, deepest = [torch.randn(6, 5), torch.randn(6, 5)], torch.randn(6, 5)
    shallow, deep = torch.func.grad(self_distillation, (0, 1))(exits, deepest)
    assert all(x.count_nonzero() > 0 for x in shallow)
    assert deep.count_nonzero() == 0


def test_what_is_refused() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(TransferError, match="self_distillation: wanted the logits of at least one shallow exit"):
        self_distillation([], x)
    for wrong in ([x, x[:, :2]], x, torch.zeros(4, 2, 2)):
        with pytest.raises(TransferError, match=r"self_distillation: wanted exits of \(n, classes\)"):
            self_distillation(wrong, x)
