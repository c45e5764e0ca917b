"""`sd` against a loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.steps import refused
from ttransfer.align._sd import sd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(logits: Tensor) -> Tensor:
    return sum((z**2 for z in logits.flatten()), logits.new_zeros(())) / logits.numel()


TRIALS = (loss_trial(sd, torch.randn(4, 3), reference=slow, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_what_is_refused() -> None:
    refused(lambda: sd(torch.tensor([1, 2])), "sd: wanted floating logits")
    assert sd(torch.tensor([1.0, -3.0])) == 5
