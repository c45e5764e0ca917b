"""The weighted domain loss against a loop; the weights of sure rows."""

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
from ttransfer.align import domain_adversarial, entropy_weights, weighted_domain_adversarial
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(source: Tensor, target: Tensor, w: Tensor, v: Tensor) -> Tensor:
    total = source.new_zeros(())
    for logits, weights, label in ((source, w, 1.0), (target, v, 0.0)):
        for row, weight in zip(logits, weights, strict=True):
            p = 1 / (1 + (-row).exp())
            total = total - weight * (p if label else 1 - p).log().mean() / len(logits) / 2
    return total


EXAMPLE = {
    "source_logits": torch.randn(4, 1),
    "target_logits": torch.randn(5, 1),
    "source_weights": torch.rand(4),
    "target_weights": torch.rand(5),
}
TRIALS = (loss_trial(weighted_domain_adversarial, EXAMPLE, reference=slow, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("shapes", [((5,), (3,)), ((2, 1, 3, 3), (3, 1, 2, 2)), ((2, 4, 1), (3, 4, 1))])
def test_maps_and_tokens_count_as_their_mean(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    source, target = (normal(i, *shape) for i, shape in enumerate(shapes))
    ones = torch.ones(source.shape[0]), torch.ones(target.shape[0])
    same(lambda s: weighted_domain_adversarial(s, target, *ones), lambda s: domain_adversarial(s, target), source)
    w, v = normal(2, source.shape[0]).abs(), normal(3, target.shape[0]).abs()
    same(lambda s: weighted_domain_adversarial(s, target, w, v), lambda s: slow(s, target, w, v), source)


def test_beside_torch() -> None:
    source, target, w, v = normal(0, 5), normal(1, 3), normal(2, 5).abs(), normal(3, 3).abs()
    bce = F.binary_cross_entropy_with_logits
    both = (bce(source, torch.ones_like(source), w) + bce(target, torch.zeros_like(target), v)) / 2
    assert weighted_domain_adversarial(source, target, w, v).item() == pytest.approx(both.item(), rel=1e-12)


def test_after_a_sigmoid_a_confident_mistake_is_clamped() -> None:
    logits, one = torch.tensor([18.0]), torch.ones(1)
    assert F.binary_cross_entropy(logits.sigmoid(), torch.zeros(1)).item() == 100
    assert weighted_domain_adversarial(logits, logits, 0 * one, 2 * one).item() == pytest.approx(18)


def test_weights_of_sure_rows() -> None:
    logits = normal(4, 6, 3) * 3
    same(lambda z: entropy_weights(z).sum(), lambda z: slow_weights(z).sum(), logits)
    other = theirs("pytorch_adapt.layers", "EntropyWeights", normalizer=torch.nn.Identity())
    same(lambda z: entropy_weights(z).square().sum(), lambda z: other(z).square().sum(), logits)
    assert entropy_weights(torch.zeros(1, 4)).item() == pytest.approx(1.25)
    sure = torch.tensor([[1e3, -1e3]], dtype=torch.bfloat16)
    assert entropy_weights(sure).item() == 2
    assert torch.func.grad(lambda z: entropy_weights(z).sum())(sure).isfinite().all()


def slow_weights(logits: Tensor) -> Tensor:
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return 1 + torch.stack([math.e ** (row * row.log()).sum() for row in p])


def test_what_it_refuses() -> None:
    two, ones = torch.zeros(2, 1), torch.ones(2)
    with pytest.raises(TransferError, match=r"a weight for each row, got .*with weights source \(3,\) float32"):
        weighted_domain_adversarial(two, two, torch.ones(3), ones)
    with pytest.raises(TransferError, match=r"one logit per item.*target \(2, 4\) float32"):
        weighted_domain_adversarial(two, torch.zeros(2, 4), ones, ones)
    with pytest.raises(TransferError, match=r"entropy_weights: wanted logits"):
        entropy_weights(torch.zeros(3))
