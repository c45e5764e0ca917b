"""Losses between domains."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from tests.testing.mutants import _slow_domains
from tests.testing.mutants._pair import Pair

_g = torch.Generator().manual_seed(3)
_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


def _draw(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, generator=_g) for shape in shapes)


def _squares(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None] - y).square().sum(2)


def _kernel(squares: Tensor, variance: Any) -> Tensor:
    return sum((squares / (-2 * scale * variance)).exp() for scale in _SCALES)


def _variance(source: Tensor, target: Tensor) -> Tensor:
    """The mean squared distance over pairs."""
    return 2 * torch.cat([source, target]).var(0).sum().clamp(min=torch.finfo(source.dtype).tiny)


def _grams(source: Tensor, target: Tensor, variance: Any) -> list[Tensor]:
    pairs = ((source, source), (target, target), (source, target))
    return [_kernel(_squares(x, y), variance) for x, y in pairs]


def mmd_width_trained(source: Tensor, target: Tensor) -> Tensor:
    s, t, st = _grams(source, target, _variance(source, target))
    return s.mean() + t.mean() - 2 * st.mean()


def mmd_item(source: Tensor, target: Tensor) -> Tensor:
    s, t, st = _grams(source, target, _variance(source, target).item())
    return s.mean() + t.mean() - 2 * st.mean()


def mmd_in_single(source: Tensor, target: Tensor) -> Tensor:
    s, t, st = _grams(source.float(), target.float(), _variance(source, target).detach().float())
    return s.mean() + t.mean() - 2 * st.mean()


def mmd_unbiased(source: Tensor, target: Tensor, *, bandwidth: float = 1.0) -> Tensor:
    return tt.align.mmd_unbiased(source, target, bandwidth=bandwidth)


def mmd_with_diagonal(source: Tensor, target: Tensor, *, bandwidth: float = 1.0) -> Tensor:
    n, m = len(source), len(target)
    s, t, st = _grams(source, target, bandwidth**2)
    return s.sum() / (n * (n - 1)) + t.sum() / (m * (m - 1)) - 2 * st.mean()


def mmd_linear(first: Tensor, second: Tensor, *, bandwidth: float = 1.0) -> Tensor:
    return tt.align.mmd_linear(first, second, bandwidth=bandwidth)


def mmd_linear_one_cross_twice(first: Tensor, second: Tensor, *, bandwidth: float = 1.0) -> Tensor:
    end = min(len(first), len(second)) // 2 * 2
    (a1, a2), (b1, b2) = ((x[0:end:2], x[1:end:2]) for x in (first, second))
    signed = ((1, a1, a2), (1, b1, b2), (-1, a1, b2), (-1, a1, b2))
    return sum(sign * _kernel((x - y).square().sum(1), bandwidth**2) for sign, x, y in signed).mean()


def coral_not_scaled(source: Tensor, target: Tensor) -> Tensor:
    return (source.mT.cov() - target.mT.cov()).square().sum()


def coral_centred_across(source: Tensor, target: Tensor) -> Tensor:
    s, t = (x - x.mean(1, keepdim=True) for x in (source, target))
    gap = s.mT @ s / (len(s) - 1) - t.mT @ t / (len(t) - 1)
    return gap.square().sum() / (4 * source.shape[1] ** 2)


def dann(source: Tensor, target: Tensor, critic: Tensor, *, scale: float = 0.5) -> Tensor:
    s, t = (tt.align.gradient_reversal(x, scale) @ critic for x in (source, target))
    return tt.align.domain_adversarial(s, t)


def dann_not_reversed(source: Tensor, target: Tensor, critic: Tensor, *, scale: float = 0.5) -> Tensor:
    s, t = (tt.align.gradient_reversal(x, -scale) @ critic for x in (source, target))
    return tt.align.domain_adversarial(s, t)


def dann_scaled_outside(source: Tensor, target: Tensor, critic: Tensor, *, scale: float = 0.5) -> Tensor:
    s, t = (tt.align.gradient_reversal(x, 1.0) @ critic for x in (source, target))
    return scale * tt.align.domain_adversarial(s, t)


def critic_loss_clamped(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    s, t = source_logits.sigmoid().clamp(1e-7, 1 - 1e-7), target_logits.sigmoid().clamp(1e-7, 1 - 1e-7)
    return -(s.log().mean() + (1 - t).log().mean()) / 2


def _distance(x: Tensor, y: Tensor) -> Tensor:
    squares = _squares(x, y)
    return (torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)).mean()


def energy(source: Tensor, target: Tensor) -> Tensor:
    return 2 * _distance(source, target) - _distance(source, source) - _distance(target, target)


def energy_cross_once(source: Tensor, target: Tensor) -> Tensor:
    return _distance(source, target) - _distance(source, source) - _distance(target, target)


def sliced_wasserstein(source: Tensor, target: Tensor, directions: Tensor) -> Tensor:
    n, m, directions = len(source), len(target), F.normalize(directions, dim=0)
    s, t = (source @ directions).sort(0).values, (target @ directions).sort(0).values
    return (s.repeat_interleave(m, 0) - t.repeat_interleave(n, 0)).square().mean()


def sliced_wasserstein_sorted_across(source: Tensor, target: Tensor, directions: Tensor) -> Tensor:
    n, m, directions = len(source), len(target), F.normalize(directions, dim=0)
    s, t = (source @ directions).sort(1).values, (target @ directions).sort(1).values
    return (s.repeat_interleave(m, 0) - t.repeat_interleave(n, 0)).square().mean()


def sliced_wasserstein_drawn(source: Tensor, target: Tensor, directions: Tensor) -> Tensor:
    n, m, directions = len(source), len(target), F.normalize(torch.randn_like(directions), dim=0)
    s, t = (source @ directions).sort(0).values, (target @ directions).sort(0).values
    return (s.repeat_interleave(m, 0) - t.repeat_interleave(n, 0)).square().mean()


def _centres(x: Tensor, labels: Tensor, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    here = labels[:, None] == torch.arange(classes, device=labels.device)
    return here.to(dtype).mT @ x / here.sum(0).clamp(min=1)[:, None], here.any(0)


def class_means(
    source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor, *, classes: int = 3
) -> Tensor:
    s, in_s = _centres(source, source_labels, classes, source.dtype)
    t, in_t = _centres(target, target_labels, classes, target.dtype)
    both = in_s & in_t
    return ((s - t).square().mean(1) * both).sum() / both.sum().clamp(min=1)


def class_means_float(
    source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor, *, classes: int = 3
) -> Tensor:
    s, in_s = _centres(source, source_labels, classes, torch.float32)
    t, in_t = _centres(target, target_labels, classes, torch.float32)
    both = in_s & in_t
    return ((s - t).square().mean(1) * both).sum() / both.sum().clamp(min=1)


def class_means_empty(
    source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor, *, classes: int = 3
) -> Tensor:
    s = torch.stack([source[source_labels == c].mean(0) for c in range(classes)])
    t = torch.stack([target[target_labels == c].mean(0) for c in range(classes)])
    return (s - t).square().mean()


def cdan(features: Tensor, logits: Tensor, domains: Tensor, critic: Tensor) -> Tensor:
    outer = features[:, :, None] * logits.detach().softmax(1)[:, None]
    return F.binary_cross_entropy_with_logits(outer.flatten(1) @ critic, domains.to(features.dtype))


def cdan_through_predictions(features: Tensor, logits: Tensor, domains: Tensor, critic: Tensor) -> Tensor:
    outer = features[:, :, None] * logits.softmax(1)[:, None]
    return F.binary_cross_entropy_with_logits(outer.flatten(1) @ critic, domains.to(features.dtype))


def mean_gap(source: Tensor, target: Tensor, *, margin: float = 0.1) -> Tensor:
    gap = (source.mean(0) - target.mean(0)).square().sum()
    return (gap - margin).clamp(min=0)


def mean_gap_by_branch(source: Tensor, target: Tensor, *, margin: float = 0.1) -> Tensor:
    gap = (source.mean(0) - target.mean(0)).square().sum()
    return gap - margin if gap > margin else gap.new_zeros(())


_DISTANCE = {"zero_at_equality": True, "non_negative": True, "symmetric": True, "coupled": True}
_ROTATED = {**_DISTANCE, "rotation_invariant": True}
_WIDTH = {"gradcheck": "the width comes from the batch and is detached"}
_GRL = {"gradcheck": "the reversal hands back another gradient than the value's"}
_LABELS = torch.tensor([0, 1, 2, 0, 1, 0]), torch.tensor([2, 1, 0, 0, 1])

# fmt: off
PAIRS: tuple[Pair, ...] = (
    Pair("mmd-width-not-detached", "loss", tt.align.mmd, mmd_width_trained, "the loss falls by widening the kernel",
         tags={**_ROTATED, "scale_invariant": True}, reference=_slow_domains.mmd, expected_failed_checks=_WIDTH),
    Pair("mmd-item", "loss", tt.align.mmd, mmd_item, ".item() is the popular way to detach the width",
         tags={**_ROTATED, "scale_invariant": True}, expected_failed_checks=_WIDTH),
    Pair("mmd-in-single-precision", "loss", tt.align.mmd, mmd_in_single, ".float() against half-precision trouble",
         tags=_ROTATED, expected_failed_checks=_WIDTH),
    Pair("mmd-unbiased-diagonal-kept", "loss", mmd_unbiased, mmd_with_diagonal, "n (n - 1) is there, the mask is not",
         tags={"symmetric": True, "rotation_invariant": True, "coupled": True, "min_batch": 2},
         reference=_slow_domains.mmd_unbiased),
    Pair("mmd-linear-one-cross-term-twice", "loss", mmd_linear, mmd_linear_one_cross_twice, "copy and paste",
         example=_draw((6, 4), (7, 4)), tags={"symmetric": True, "coupled": True, "min_batch": 2}),
    Pair("coral-not-scaled", "loss", tt.align.coral, coral_not_scaled, "1 / (4 d^2); ports scale it in their own ways",
         tags={**_ROTATED, "min_batch": 2, "double_backward": True}, reference=_slow_domains.coral),
    Pair("coral-centred-over-the-wrong-axis", "loss", tt.align.coral, coral_centred_across, "skada#171, for months",
         tags={**_ROTATED, "min_batch": 2}),
    Pair("dann-not-reversed", "loss", dann, dann_not_reversed, "a scale of -0.5 into a layer that negates",
         example=_draw((6, 4), (5, 4), (4,)), tags={"non_negative": True}, reference=_slow_domains.dann,
         expected_failed_checks=_GRL),
    Pair("dann-loss-scaled-for-gradient", "loss", dann, dann_scaled_outside, "the critic learns slower, too",
         example=_draw((6, 4), (5, 4), (4,)), tags={"non_negative": True}, reference=_slow_domains.dann,
         expected_failed_checks=_GRL),
    Pair("critic-bce-of-clamped-sigmoid", "loss", tt.align.domain_adversarial, critic_loss_clamped,
         "TLlib: cross-entropy of probabilities stops learning where the critic is sure",
         example=_draw((6,), (5,)), tags={"non_negative": True}, reference=_slow_domains.critic_loss),
    Pair("energy-cross-term-once", "loss", energy, energy_cross_once, "2 E|x - y| without its 2", tags=_ROTATED),
    Pair("sliced-wasserstein-sorted-across", "loss", sliced_wasserstein, sliced_wasserstein_sorted_across,
         "sort's default is the last dimension: over directions", example=_draw((6, 4), (5, 4), (4, 8)),
         tags={"zero_at_equality": True, "non_negative": True, "coupled": True},
         reference=_slow_domains.sliced_wasserstein),
    Pair("sliced-wasserstein-draws", "loss", sliced_wasserstein, sliced_wasserstein_drawn,
         "drawn inside the loss, from the global generator", example=_draw((6, 4), (5, 4), (4, 8)),
         tags={"zero_at_equality": True, "non_negative": True, "coupled": True}),
    Pair("class-means-float-mask", "loss", class_means, class_means_float, ".float() on the one-hot labels",
         example=(*_draw((6, 4), (5, 4)), *_LABELS), tags={"non_negative": True, "coupled": True}),
    Pair("class-means-of-empty-classes", "loss", class_means, class_means_empty, "a class without a row has no mean",
         example=(*_draw((6, 4), (5, 4)), *_LABELS), tags={"non_negative": True, "coupled": True},
         reference=_slow_domains.class_means),
    Pair("cdan-predictions-not-detached", "loss", cdan, cdan_through_predictions, "CDAN conditions on g, detached",
         example=(*_draw((6, 4), (6, 3)), torch.tensor([1, 1, 1, 0, 0, 0]), *_draw((12,))),
         tags={"non_negative": True, "coupled": False, "detaches": ("logits",)}),
    Pair("mean-gap-by-branch", "loss", mean_gap, mean_gap_by_branch, "`if gap > margin` in the loss", tags=_ROTATED),
)
# fmt: on
