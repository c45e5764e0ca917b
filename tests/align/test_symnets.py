"""The losses of two classifiers side by side, against loops and pytorch-adapt."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.games import normal
from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align import symnets_category, symnets_confusion, symnets_domain, symnets_entropy
from ttransfer.testing import loss_trial, parametrize_with_checks


def both(z: Tensor, y: Tensor) -> Tensor:
    odds = torch.cat([z, y]).exp()
    return odds / odds.sum()


def slow_domain(source: Tensor, target: Tensor, other_source: Tensor, other_target: Tensor) -> Tensor:
    c, total = source.shape[1], source.new_zeros(())
    for z, y in zip(source, other_source, strict=True):
        total = total - both(z, y)[:c].sum().log() / len(source)
    for z, y in zip(target, other_target, strict=True):
        total = total - both(z, y)[c:].sum().log() / len(target)
    return total


def slow_confusion(logits: Tensor, other_logits: Tensor) -> Tensor:
    c, total = logits.shape[1], logits.new_zeros(())
    for z, y in zip(logits, other_logits, strict=True):
        p = both(z, y)
        total = total - (p[:c].sum().log() + p[c:].sum().log()) / 2 / len(logits)
    return total


def slow_category(logits: Tensor, other_logits: Tensor, labels: Tensor) -> Tensor:
    c, total = logits.shape[1], logits.new_zeros(())
    for z, y, label in zip(logits, other_logits, labels.tolist(), strict=True):
        p = both(z, y)
        total = total - (p[label].log() + p[label + c].log()) / 2 / len(logits)
    return total


def slow_entropy(logits: Tensor, other_logits: Tensor) -> Tensor:
    c, total = logits.shape[1], logits.new_zeros(())
    for z, y in zip(logits, other_logits, strict=True):
        p = both(z, y)
        total = total - sum(((p[k] + p[k + c]) * (p[k] + p[k + c]).log() for k in range(c)), total * 0) / len(logits)
    return total


FOUR = {
    "source_logits": torch.randn(4, 3),
    "target_logits": torch.randn(5, 3),
    "other_source_logits": torch.randn(4, 3),
    "other_target_logits": torch.randn(5, 3),
}
EVEN = torch.zeros(1, 2)
TRIALS = (
    loss_trial(
        symnets_domain,
        FOUR,
        reference=slow_domain,
        limits={"even": lambda fn: (fn(EVEN, EVEN, EVEN, EVEN), 2 * math.log(2))},
        examples=4,
    ),
    loss_trial(symnets_confusion, reference=slow_confusion, examples=4),
    loss_trial(symnets_category, reference=slow_category, examples=4),
    loss_trial(symnets_entropy, reference=slow_entropy, examples=4),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_pytorch_adapt() -> None:
    s, t, s2, t2 = normal(0, 5, 3), normal(1, 4, 3), normal(2, 5, 3), normal(3, 4, 3)
    half = [theirs("pytorch_adapt.layers", "SymNetsDomainLoss", i) for i in (0, 1)]
    same(lambda s: symnets_domain(s, t, s2, t2), lambda s: half[0](s, s2) + half[1](t, t2), s)
    same(symnets_confusion, lambda t, t2: (half[0](t, t2) + half[1](t, t2)) / 2, t, t2)
    same(symnets_entropy, theirs("pytorch_adapt.layers", "SymNetsEntropyLoss"), t, t2)


def test_pytorch_adapts_category_loss_takes_probabilities_for_logits() -> None:
    category = theirs("pytorch_adapt.layers", "SymNetsCategoryLoss")
    labels = torch.tensor([0, 1, 2, 1])
    best = 50.0 * F.one_hot(labels, 3).double()
    assert symnets_category(best, best, labels).item() == pytest.approx(math.log(2), rel=1e-9)
    floor = 2 * math.log(1 + 2 * math.exp(-0.5))
    assert category(best, best, labels).item() == pytest.approx(floor, rel=1e-9)
    assert floor == pytest.approx(1.59, abs=0.005)
    wrong = sum(F.cross_entropy(p, labels) for p in torch.cat([best, 0 * best], 1).softmax(1).split(3, 1))
    assert category(best, 0 * best, labels).item() == pytest.approx(float(wrong), rel=1e-9)


def test_a_sure_classifier_still_teaches() -> None:
    sure, low = torch.full((1, 2), 60.0), torch.full((1, 2), -60.0)
    slope = torch.func.grad(symnets_domain)(low, low, sure, sure)
    assert slope.sum().item() == pytest.approx(-1, abs=1e-5)
    half = theirs("pytorch_adapt.layers", "SymNetsDomainLoss", 0)
    leaf = low.clone().requires_grad_()
    (theirs_slope,) = torch.autograd.grad(half(leaf, sure), leaf)
    assert theirs_slope.count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confident_logits(dtype: torch.dtype) -> None:
    z = torch.tensor([[1e3, -1e3], [0.0, 1e3]], dtype=dtype)
    labels = torch.tensor([1, 0])

    def category(logits: Tensor, other_logits: Tensor) -> Tensor:
        return symnets_category(logits, other_logits, labels)

    losses: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (symnets_confusion, symnets_entropy, category)
    for loss in losses:
        for slope in torch.func.grad(loss, argnums=(0, 1))(z, -z):
            assert slope.isfinite().all()


def test_what_they_refuse() -> None:
    z = torch.zeros(4, 3)
    with pytest.raises(TransferError, match="symnets_domain: wanted the same rows, got logits"):
        symnets_domain(z, z, z[:2], z)
    with pytest.raises(TransferError, match="symnets_category: wanted labels"):
        symnets_category(z, z, torch.zeros(3).long())
    with pytest.raises(TransferError, match="symnets_confusion: wanted logits of the same classes"):
        symnets_confusion(z, z[:, :2])
    with pytest.raises(TransferError, match=r"symnets_entropy: wanted logits \(n, classes\) of two classifiers"):
        symnets_entropy(z[..., None], z[..., None])
