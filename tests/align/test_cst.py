"""`cst` against the regression in the features, and what it is for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.steps import refused
from ttransfer.align._cst import cst
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow(source: Tensor, target: Tensor, labels: Tensor, target_logits: Tensor, ridge: float = 1e-3) -> Tensor:
    """The weights of the ridge regression, features by classes, applied to the source row by row."""
    s, t = (x / x.norm(dim=1, keepdim=True) for x in (source.double(), target.double()))
    count = target_logits.shape[1]
    code = torch.eye(count, dtype=torch.float64) - 1 / count
    fitted = torch.stack([code[int(z.argmax())] for z in target_logits])
    square = sum((torch.outer(x, x) for x in t), ridge * torch.eye(t.shape[1], dtype=torch.float64))
    weights = torch.linalg.inv(square) @ sum(torch.outer(x, y) for x, y in zip(t, fitted, strict=True))
    errors = [((x @ weights - code[int(y)]) ** 2).sum() for x, y in zip(s, labels, strict=True)]
    return sum(errors, source.new_zeros(())) / (len(s) * count)


EXAMPLE = {
    "source": torch.randn(4, 5),
    "target": torch.randn(6, 5),
    "labels": torch.tensor([0, 1, 2, 0]),
    "target_logits": torch.randn(6, 3),
}
TRIALS = (
    loss_trial(
        cst,
        EXAMPLE,
        reference=slow,
        tags=Tags(zero_at_equality=False, symmetric=False, double_backward=True),
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_right_pseudo_labels_cost_nothing_and_wrong_ones_do() -> None:
    source, labels = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    logits = torch.eye(3).repeat(2, 1)
    target = torch.eye(3).repeat(2, 1)
    assert cst(source, target, labels, logits) < 1e-6
    assert cst(source, target, labels, logits.roll(1, 1)) > 0.5


def test_duplicates_and_zeros_are_finite() -> None:
    one = torch.ones(5, 4)
    for dtype in (torch.float32, torch.bfloat16):
        for source, target in ((one, one), (0 * one, one), (one, 0 * one)):
            slopes, value = torch.func.grad_and_value(cst, (0, 1))(
                source.to(dtype), target.to(dtype), torch.arange(5) % 3, torch.eye(5)[:, :3]
            )
            assert value.dtype == dtype
            assert value.isfinite()
            assert all(x.isfinite().all() for x in slopes)


def test_what_is_refused() -> None:
    s, t, y, z = EXAMPLE.values()
    refused(lambda: cst(s, t[:, :2], y, z), "cst: wanted features of one width d")
    refused(lambda: cst(s, t, y, z[:2]), "cst: wanted the same rows")
    refused(lambda: cst(s, t, y[:2], z), "cst: wanted labels (n,) of whole numbers, one for each row")
