"""What the losses refuse, in words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.losses._check import want_logits, want_variant


@pytest.mark.parametrize("shape", [(1, 1), (4, 10), (4, 10, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_pass(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    want_logits("loss", student=torch.zeros(shape, dtype=dtype), teacher=torch.zeros(shape))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 5), r"one shape, got student \(4, 3\) float32 and teacher \(4, 5\) float32"),
        (torch.zeros(4, 3), torch.zeros(4, 3, 1), r"one shape, got student \(4, 3\) .* teacher \(4, 3, 1\)"),
        (torch.zeros(()), torch.zeros(()), r"wanted logits \(n, classes, \.\.\.\), got student \(\) float32"),
        (torch.zeros(4, 3).long(), torch.zeros(4, 3), r"not labels; got student \(4, 3\) int64"),
    ],
)
def test_others_do_not(student: torch.Tensor, teacher: torch.Tensor, message: str) -> None:
    with pytest.raises(TransferError, match="loss: .*" + message):
        want_logits("loss", student=student, teacher=teacher)


def test_a_variant_is_the_papers_or_the_codes() -> None:
    want_variant("loss", "paper")
    want_variant("loss", "code")
    with pytest.raises(TransferError, match="loss: wanted variant 'paper' or 'code', got 'papers'"):
        want_variant("loss", "papers")


@pytest.mark.parametrize("loss", [tt.losses.kd, tt.losses.rkd, tt.losses.hcl, tt.losses.fitnet])
def test_what_is_no_tensor(loss: Callable[..., torch.Tensor]) -> None:
    array = np.zeros((4, 3), dtype=np.float32)
    with pytest.raises(
        TransferError, match=r"wanted tensors, got .* teacher ndarray \(4, 3\) float32; torch.from_numpy"
    ):
        loss(torch.zeros(4, 3), array)
    with pytest.raises(TransferError, match=r"wanted tensors, got logits .* labels \[int, int\]"):
        tt.losses.label_smoothing(torch.zeros(2, 3), [0, 1])  # pyright: ignore[reportArgumentType]
