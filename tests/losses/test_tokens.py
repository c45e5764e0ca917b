"""Masks of valid tokens."""

from __future__ import annotations

import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.losses._tokens import masked_mean, masked_square, tokens, want_mask

X = torch.tensor([[1.0, 2.0], [3.0, 50.0]])
MASK = torch.tensor([[1, 1], [1, 0]])


def test_mean_of_what_is_valid() -> None:
    assert masked_mean(X, None).item() == 14
    assert masked_mean(X, MASK != 0).item() == 2
    assert masked_mean(X[None], (MASK != 0)[:, 0]).item() == 14  # spread over what it is not given for
    assert masked_mean(X, torch.zeros_like(MASK, dtype=torch.bool)).item() == 0
    assert masked_square(X, 0 * X, None).item() == (1 + 4 + 9 + 2500) / 4
    assert masked_square(X, 0 * X, MASK != 0).item() == pytest.approx(14 / 3)


def test_what_is_masked_may_be_anything() -> None:
    x = torch.tensor([1.0, torch.nan], requires_grad=True)
    masked_mean(x, torch.tensor([True, False])).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0]


def test_count() -> None:
    assert tokens(X, X) == 2
    assert int(tokens(X, X, MASK)) == int(tokens(X, X, MASK.bool())) == 3


def test_what_is_refused() -> None:
    want_mask("here", torch.zeros(2, 5, 3), None)
    want_mask("here", torch.zeros(2, 4, 5, 3), torch.ones(2, 5))
    with pytest.raises(TransferError, match=r"here: wanted a mask \(n, tokens\) = \(2, 5\), got mask.*\(2, 3\)"):
        want_mask("here", torch.zeros(2, 5, 3), torch.ones(2, 3))
