"""What losses of token models share: masks of valid tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._errors import TransferError, shown

__all__ = ["masked_mean", "masked_square", "tokens", "want_mask"]


def want_mask(called: str, student: Tensor, mask: Tensor | None) -> None:
    """Refuse a mask that does not give one number for each token of tokens (n, ..., tokens, width)."""
    wanted = (student.shape[0], student.shape[-2])
    if mask is not None and mask.shape != wanted:
        raise TransferError(
            f"{called}: wanted a mask (n, tokens) = {wanted}, got mask {shown(mask)} for student {shown(student)}"
        )


def tokens(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor | int:
    """Count the valid tokens that a loss is a mean over; without a mask the rows, as many tokens each."""
    return student.shape[0] if mask is None else (mask != 0).sum()


def masked_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over what is valid, 0 if nothing is; a mask of fewer numbers holds for all that it is spread over."""
    if valid is None:
        return x.mean()
    spread = valid.expand_as(x)
    return torch.where(spread, x, 0).sum() / spread.sum().clamp_min(1)


def masked_square(x: Tensor, y: Tensor, valid: Tensor | None) -> Tensor:
    """Mean squared difference over what is valid, 0 if nothing is."""
    return F.mse_loss(x, y) if valid is None else masked_mean((x - y).square(), valid)
