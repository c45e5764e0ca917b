"""`lmmd` class by class, as the paper has it and as the authors' code does."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from tests.align.test_mmd import SCALES, mean_square, pair
from ttransfer._errors import TransferError
from ttransfer.align._lmmd import lmmd
from ttransfer.align._mmd import mmd
from ttransfer.testing import loss_trial, parametrize_with_checks

HELD = {"gradcheck": "the width of the batch is held constant"}


def slow(source: Tensor, target: Tensor, labels: Tensor, logits: Tensor, variant: str = "paper") -> Tensor:
    width = mean_square(torch.cat([source, target]))
    p = logits.detach().softmax(1)

    def k(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([(-((x - y) ** 2).sum() / (2 * c * width)).exp() for c in SCALES]).sum()

    def mean(one: list[float], xs: Tensor, other: list[float], ys: Tensor) -> Tensor:
        pairs = itertools.product(zip(one, xs, strict=True), zip(other, ys, strict=True))
        return torch.stack([a * b * k(x, y) for (a, x), (b, y) in pairs]).sum()

    found: list[Tensor] = []
    for c in range(logits.shape[1]):
        inside = [float(y == c) for y in labels.tolist()]
        predicted = c in p.argmax(1).tolist()
        if sum(inside) == 0 or (variant == "code" and not predicted):
            continue
        ws = [x / sum(inside) for x in inside]
        wt = [(x / p[:, c].sum()).item() for x in p[:, c]]
        total = mean(ws, source, ws, source) + mean(wt, target, wt, target)
        found.append(total - 2 * mean(ws, source, wt, target))
    nothing = 0 * source.sum()
    return sum(found, nothing) / (logits.shape[1] if variant == "paper" else max(1, len(found)))


TRIALS = (
    loss_trial(lmmd, reference=slow, expected_failed_checks=HELD, examples=4),
    loss_trial(
        functools.partial(lmmd, variant="code"),
        reference=functools.partial(slow, variant="code"),
        expected_failed_checks=HELD,
        name="lmmd as in code",
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_class_is_mmd() -> None:
    s, t = pair(5, 7, 3)
    sure = torch.tensor([[200.0, 0.0]]).double().expand(7, 2)
    labels = torch.zeros(5, dtype=torch.long)
    whole = mmd(s, t, bandwidth=1.0)
    assert torch.allclose(lmmd(s, t, labels, sure, bandwidth=1.0, variant="code"), whole, rtol=1e-10)
    assert torch.allclose(lmmd(s, t, labels, sure, bandwidth=1.0), whole / 2, rtol=1e-10)


def test_classes_that_nobody_is() -> None:
    s, t = pair(3, 4, 2)
    sure = 1000 * torch.eye(3)[[0, 0, 0, 0]]
    for variant in ("paper", "code"):
        loss = functools.partial(lmmd, variant=variant)
        assert grad(loss)(s, t, torch.tensor([1, 2, -1]), sure).isfinite().all()
        assert loss(s, t, torch.tensor([-1, -1, -1]), sure) == 0
    assert lmmd(s, t, torch.tensor([1, 2, 1]), sure, variant="code") == 0


def test_what_is_refused() -> None:
    s, t, labels, logits = torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(3).long(), torch.zeros(4, 5)
    with pytest.raises(TransferError, match="lmmd: wanted labels"):
        lmmd(s, t, labels[:2], logits)
    with pytest.raises(TransferError, match="lmmd: wanted the same rows"):
        lmmd(s, t, labels, logits[:3])
    with pytest.raises(TransferError, match=r"lmmd: wanted logits \(m, classes\)"):
        lmmd(s, t, labels, logits[:, :, None])
    with pytest.raises(TransferError, match="lmmd: wanted variant"):
        lmmd(s, t, labels, logits, variant="other")  # type: ignore[arg-type]
