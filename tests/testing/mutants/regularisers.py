"""Losses with labels, and penalties on weights and features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.testing.mutants import _slow_domains
from tests.testing.mutants._pair import Pair

_g = torch.Generator().manual_seed(6)


def _draw(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, generator=_g) for shape in shapes)


def cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = -100) -> Tensor:
    valid = labels != ignore_index
    rows = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    return rows.sum() / valid.sum().clamp(min=1)


def cross_entropy_over_all(logits: Tensor, labels: Tensor, *, ignore_index: int = -100) -> Tensor:
    rows = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    return rows.mean()


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    w = weight.detach()[labels]
    rows = F.cross_entropy(logits, labels, reduction="none")
    return (w * rows).sum() / torch.where(w.sum() == 0, 1.0, w.sum())


def weighted_cross_entropy_over_rows(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    w = weight.detach()[labels]
    rows = F.cross_entropy(logits, labels, reduction="none")
    return (w * rows).sum() / len(w)


def adjusted_cross_entropy(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    prior = (counts + 1).to(logits.dtype).log()
    return F.cross_entropy(logits + prior, labels)


def adjusted_cross_entropy_minus(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    prior = (counts + 1).to(logits.dtype).log()
    return F.cross_entropy(logits - prior, labels)


def mixup(logits: Tensor, labels: Tensor, other_labels: Tensor, *, share: float = 0.3) -> Tensor:
    return share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, other_labels)


def mixup_one_label_twice(logits: Tensor, labels: Tensor, other_labels: Tensor, *, share: float = 0.3) -> Tensor:
    return share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels)


def _dice(logits: Tensor, labels: Tensor) -> Tensor:
    p, here = logits.softmax(1), labels[:, None] == torch.arange(logits.shape[1], device=labels.device)[:, None, None]
    both, sizes = (p * here).sum((0, 2, 3)), p.sum((0, 2, 3)) + here.sum((0, 2, 3))
    return 1 - (2 * both + 1e-5) / (sizes + 1e-5)


def dice(logits: Tensor, labels: Tensor) -> Tensor:
    return _dice(logits, labels)[1:].mean()


def dice_last_for_first(logits: Tensor, labels: Tensor) -> Tensor:
    return _dice(logits, labels)[:-1].mean()


def regression(predictions: Tensor, targets: Tensor) -> Tensor:
    return (predictions.squeeze(1) - targets).square().mean()


def regression_broadcast(predictions: Tensor, targets: Tensor) -> Tensor:
    return (predictions - targets).square().mean()


def l2_sp(weights: Tensor, start: Tensor, *, strength: float = 0.1) -> Tensor:
    return strength / 2 * (weights - start.detach()).square().sum()


def l2_sp_detached(weights: Tensor, start: Tensor, *, strength: float = 0.1) -> Tensor:
    return strength / 2 * (weights.detach() - start).square().sum()


def ewc(weights: Tensor, start: Tensor, fisher: Tensor) -> Tensor:
    return (fisher.detach() * (weights - start.detach()).square()).sum() / 2


def ewc_parenthesis(weights: Tensor, start: Tensor, fisher: Tensor) -> Tensor:
    return (fisher.detach() * (weights - start.detach())).square().sum() / 2


def orthogonality(weight: Tensor) -> Tensor:
    gram = weight.mT @ weight
    return (gram - torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)).square().sum()


def orthogonality_eye(weight: Tensor) -> Tensor:
    gram = weight.mT @ weight
    return (gram - torch.eye(gram.shape[0])).square().sum()


def _norms(x: Tensor) -> Tensor:
    squared = x.square().sum(1)
    return torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)


def afn(features: Tensor, *, step: float = 1.0) -> Tensor:
    norms = _norms(features)
    return (norms - norms.detach() - step).square().mean()


def afn_no_stop(features: Tensor, *, step: float = 1.0) -> Tensor:
    norms = _norms(features)
    return (norms - norms - step).square().mean()


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float = 1.0) -> Tensor:
    return (_norms(anchor - positive) - _norms(anchor - negative) + margin).relu().mean()


def triplet_margin_outside(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float = 1.0) -> Tensor:
    return ((_norms(anchor - positive) - _norms(anchor - negative)).relu() + margin).mean()


def centre(features: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    return (features - centres[labels]).square().sum(1).mean() / 2


def centre_of_neighbour(features: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    return (features - centres[labels - 1]).square().sum(1).mean() / 2


def vrex(risks: Tensor, *, strength: float = 10.0) -> Tensor:
    return risks.mean() + strength * risks.var(correction=0)


def vrex_unbiased(risks: Tensor, *, strength: float = 10.0) -> Tensor:
    return risks.mean() + strength * risks.var()


def _slope(logits: Tensor, labels: Tensor) -> Tensor:
    """The derivative of the cross-entropy by a factor on the logits, at 1."""
    here = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
    return ((logits.softmax(1) - here.to(logits.dtype)) * logits).sum(1).mean()


def irm(logits: Tensor, labels: Tensor) -> Tensor:
    return _slope(logits, labels).square()


def irm_without_graph(logits: Tensor, labels: Tensor) -> Tensor:
    return _slope(logits.detach(), labels).square()


def bss(features: Tensor) -> Tensor:
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return torch.linalg.svdvals(wide)[-1].square().to(features.dtype)


def bss_largest(features: Tensor) -> Tensor:
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return torch.linalg.svdvals(wide)[0].square().to(features.dtype)


def barlow(first: Tensor, second: Tensor, *, off_diagonal: float = 0.1) -> Tensor:
    a, b = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-4).sqrt() for x in (first, second))
    c = a.mT @ b / len(a)
    return (c.diagonal() - 1).square().sum() + off_diagonal * (c - c.diagonal().diag()).square().sum()


def barlow_diagonal_kept(first: Tensor, second: Tensor, *, off_diagonal: float = 0.1) -> Tensor:
    a, b = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-4).sqrt() for x in (first, second))
    c = a.mT @ b / len(a)
    return (c.diagonal() - 1).square().sum() + off_diagonal * c.square().sum()


def spread(features: Tensor, *, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    return (gamma - (features.var(0, correction=0) + eps).sqrt()).relu().mean()


def spread_eps_outside(features: Tensor, *, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    return (gamma - (features.var(0, correction=0).sqrt() + eps)).relu().mean()


_SEEN = torch.tensor([0, 2, 1, 2, -100, 0])
_SIZE = {"non_negative": True, "shift_invariant": True}

# fmt: off
PAIRS: tuple[Pair, ...] = (
    Pair("cross-entropy-mean-over-ignored", "loss", cross_entropy, cross_entropy_over_all,
         "padding counts in the mean", example=(*_draw((6, 4)), torch.tensor([0, 3, 1, 2, -100, -100])),
         tags={**_SIZE, "ignore_index": -100}, reference=_slow_domains.cross_entropy),
    Pair("class-weights-over-rows", "loss", weighted_cross_entropy, weighted_cross_entropy_over_rows,
         "F.cross_entropy divides by the weights", reference=_slow_domains.weighted_cross_entropy,
         tags={"shift_invariant": True, "detaches": ("weight",)},
         example=(*_draw((6, 4)), torch.tensor([0, 3, 1, 2, 1, 0]), torch.tensor([1.0, 3.0, 0.5, 2.0]))),
    Pair("logit-adjustment-minus", "loss", adjusted_cross_entropy, adjusted_cross_entropy_minus,
         "plus in training, minus only in testing", tags={**_SIZE, "coupled": False},
         example=(*_draw((6, 4)), torch.tensor([0, 3, 1, 2, 1, 0]), torch.tensor([50, 9, 3, 0])),
         reference=_slow_domains.adjusted_cross_entropy),
    Pair("mixup-one-label-twice", "loss", mixup, mixup_one_label_twice, "the permuted labels never used",
         example=(*_draw((5, 4)), torch.tensor([0, 3, 1, 2, 1]), torch.tensor([3, 1, 0, 0, 1])),
         tags={**_SIZE, "coupled": False, "class_symmetric": True}, reference=_slow_domains.mixup),
    Pair("dice-last-class-for-background", "loss", dice, dice_last_for_first, "[:-1] for [1:]",
         example=(*_draw((2, 4, 3, 3)), torch.randint(4, (2, 3, 3), generator=_g)), tags=_SIZE,
         reference=_slow_domains.dice),
    Pair("regression-broadcast", "loss", regression, regression_broadcast, "(n, 1) minus (n,) is (n, n)",
         example=_draw((6, 1), (6,)), tags={"non_negative": True, "coupled": False}),
    Pair("l2-sp-weights-detached", "loss", l2_sp, l2_sp_detached, "ZhiJian: the trainer passes v.detach()",
         example=_draw((4, 3), (4, 3)), tags={"zero_at_equality": True, "non_negative": True, "detaches": ("start",)}),
    Pair("ewc-fisher-squared", "loss", ewc, ewc_parenthesis, "one parenthesis further left",
         example=(*_draw((4, 3), (4, 3)), 3 * torch.rand(4, 3, generator=_g)), reference=_slow_domains.ewc,
         tags={"zero_at_equality": True, "detaches": ("start", "fisher")}),
    Pair("orthogonality-eye", "loss", orthogonality, orthogonality_eye, "torch.eye(d) without device and dtype",
         example=_draw((5, 3)), tags={"non_negative": True}),
    Pair("afn-no-stop-gradient", "loss", afn, afn_no_stop, "pytorch-adapt: the value is step² whatever happens",
         tags={"non_negative": True, "coupled": False, "rotation_invariant": True}, reference=_slow_domains.afn,
         expected_failed_checks={"gradcheck": "the value is constant, the gradient is meant"}),
    Pair("triplet-margin-outside-relu", "loss", triplet, triplet_margin_outside, "never 0, for the easiest triplet",
         example=_draw((6, 4), (6, 4), (6, 4)), reference=_slow_domains.triplet,
         tags={"non_negative": True, "coupled": False, "rotation_invariant": True}),
    Pair("centre-of-the-class-before", "loss", centre, centre_of_neighbour, "labels from 1 in the author's data",
         example=(*_draw((6, 4)), torch.tensor([0, 2, 1, 1, 0, 2]), *_draw((3, 4))),
         tags={"non_negative": True, "coupled": False}, reference=_slow_domains.centre),
    Pair("vrex-unbiased-variance", "loss", vrex, vrex_unbiased, "one domain has no n - 1", example=_draw((5,))),
    Pair("irm-without-graph", "loss", irm, irm_without_graph, "DomainBed#50, for IGA: no create_graph, no gradient",
         tags={**_SIZE, "class_symmetric": True, "coupled": True, "double_backward": True}),
    Pair("bss-largest-for-smallest", "loss", bss, bss_largest, "BSP penalises the largest, BSS the smallest",
         tags={"non_negative": True, "rotation_invariant": True, "coupled": True}, reference=_slow_domains.bss),
    Pair("barlow-diagonal-kept", "loss", barlow, barlow_diagonal_kept, "the diagonal belongs to one term only",
         example=_draw((6, 4), (6, 4)), tags={"non_negative": True, "symmetric": True, "coupled": True},
         reference=_slow_domains.barlow),
    Pair("spread-eps-outside-root", "loss", spread, spread_eps_outside, "VICReg: sqrt(var) + eps at a dead feature",
         tags={"non_negative": True, "coupled": True}),
)
# fmt: on
