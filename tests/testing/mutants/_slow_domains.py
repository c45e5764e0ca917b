"""Slow, obvious formulas for domains, predictions and penalties."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.testing.mutants._slow import _first, _log_p, _mean, _unit


def _kernels(x: Tensor, y: Tensor, variance: Tensor | float) -> Tensor:
    def one(a: Tensor, b: Tensor) -> Tensor:
        return sum(torch.exp(-((a - b) ** 2).sum() / (2 * scale * variance)) for scale in (0.125, 0.25, 0.5, 1.0, 2.0))

    return torch.stack([torch.stack([one(a, b) for b in y]) for a in x])


def mmd(source: Tensor, target: Tensor) -> Tensor:
    rows = torch.cat([source, target]).detach()
    n = len(rows)
    variance = sum(((rows[i] - rows[j]) ** 2).sum() for i in range(n) for j in range(n)) / (n * (n - 1))
    variance = variance + (variance == 0)
    within = _kernels(source, source, variance).mean() + _kernels(target, target, variance).mean()
    return within - 2 * _kernels(source, target, variance).mean()


def mmd_unbiased(source: Tensor, target: Tensor, *, bandwidth: float = 1.0) -> Tensor:
    def within(x: Tensor) -> Tensor:
        gram = _kernels(x, x, bandwidth**2)
        return _mean([gram[i, j] for i in range(len(x)) for j in range(len(x)) if i != j])

    return within(source) + within(target) - 2 * _kernels(source, target, bandwidth**2).mean()


def coral(source: Tensor, target: Tensor) -> Tensor:
    def covariance(x: Tensor) -> Tensor:
        mean = sum(row for row in x) / len(x)
        return sum((row - mean)[:, None] * (row - mean) for row in x) / (len(x) - 1)

    return (covariance(source) - covariance(target)).square().sum() / (4 * source.shape[1] ** 2)


def critic_loss(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    zero = torch.zeros_like(source_logits[0])
    s = _mean([torch.logaddexp(zero, -z) for z in source_logits])
    t = _mean([torch.logaddexp(zero, z) for z in target_logits])
    return s / 2 + t / 2


def dann(source: Tensor, target: Tensor, critic: Tensor, *, scale: float = 0.5) -> Tensor:
    def turned(x: Tensor) -> Tensor:
        return x.detach() * (1 + scale) - x * scale

    return critic_loss(
        torch.stack([turned(x) @ critic for x in source]), torch.stack([turned(x) @ critic for x in target])
    )


def sliced_wasserstein(source: Tensor, target: Tensor, directions: Tensor) -> Tensor:
    costs = []
    for w in directions.T:
        s, t = ((x @ _unit(w)).sort().values for x in (source, target))
        n, m = len(s), len(t)
        # Both quantile functions are steps: they are constant on each of n * m equal parts of [0, 1].
        costs += [(s[k // m] - t[k // n]) ** 2 for k in range(n * m)]
    return _mean(costs)


def class_means(
    source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor, *, classes: int = 3
) -> Tensor:
    total, shared = torch.zeros_like(source[0, 0]), 0
    for c in range(classes):
        ours, theirs = (source_labels == c).to(source.dtype), (target_labels == c).to(target.dtype)
        gap = ours @ source / ours.sum().clamp(min=1) - theirs @ target / theirs.sum().clamp(min=1)
        both = ours.amax() * theirs.amax()
        total, shared = total + both * (gap**2).mean(), shared + both
    return total / shared.clamp(min=1)


def entropy(logits: Tensor) -> Tensor:
    return _mean([-(_log_p(z).exp() * _log_p(z)).sum() for z in logits])


def mcc(logits: Tensor, *, temperature: float = 2.5) -> Tensor:
    # Logarithms, because a class that nobody predicts has a row of zeros.
    rows, confused = [_log_p(z / temperature) for z in logits], []
    for i in range(logits.shape[1]):
        terms = [z[i] + z + torch.log1p(torch.exp((z.exp() * z).sum())) for z in rows]
        row = torch.stack(terms).logsumexp(0).softmax(0)
        confused.append(row.sum() - row[i])
    return _mean(confused)


def bnm(logits: Tensor) -> Tensor:
    return -torch.linalg.matrix_norm(logits.softmax(1), "nuc") / logits.shape[0]


def fix_match(strong: Tensor, weak: Tensor, *, threshold: float = 0.5) -> Tensor:
    values = []
    for s, w in zip(strong, weak.detach(), strict=True):
        values.append(torch.where(w.softmax(0).max() > threshold, -_first(_log_p(s), w.argmax())[0], 0.0))
    return _mean(values)


def cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = -100) -> Tensor:
    return weighted_cross_entropy(logits, labels.clamp(min=0), labels != ignore_index, by_row=True)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, *, by_row: bool = False) -> Tensor:
    total, weights = torch.zeros_like(logits[0, 0]), torch.zeros_like(logits[0, 0])
    for i, (z, y) in enumerate(zip(logits, labels, strict=True)):
        w = (weight[i] if by_row else weight[y]).detach()
        total, weights = total - w * _first(_log_p(z), y)[0], weights + w
    return total / (weights + (weights == 0))


def adjusted_cross_entropy(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    rows = zip(logits, labels, strict=True)
    return _mean([-_first(_log_p(z + torch.log(counts.to(z.dtype) + 1)), y)[0] for z, y in rows])


def mixup(logits: Tensor, labels: Tensor, other_labels: Tensor, *, share: float = 0.3) -> Tensor:
    rows = zip(logits, labels, other_labels, strict=True)
    return _mean([-share * _first(_log_p(z), a)[0] - (1 - share) * _first(_log_p(z), b)[0] for z, a, b in rows])


def dice(logits: Tensor, labels: Tensor) -> Tensor:
    scores = []
    for c in range(1, logits.shape[1]):
        p, here = logits.softmax(1)[:, c].flatten(), (labels == c).flatten()
        scores.append((2 * (p * here).sum() + 1e-5) / (p.sum() + here.sum() + 1e-5))
    return 1 - _mean(scores)


def ewc(weights: Tensor, start: Tensor, fisher: Tensor) -> Tensor:
    triples = zip(weights.flatten(), start.detach().flatten(), fisher.detach().flatten(), strict=True)
    return sum(f * (w - w0) ** 2 / 2 for w, w0, f in triples)


def afn(features: Tensor, *, step: float = 1.0) -> Tensor:
    return _mean([(x.norm() - (x.detach().norm() + step)) ** 2 for x in features])


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float = 1.0) -> Tensor:
    rows = zip(anchor, positive, negative, strict=True)
    return _mean([((a - p).norm() - (a - n).norm() + margin).clamp(min=0) for a, p, n in rows])


def centre(features: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    return _mean([((x - centres[y]) ** 2).sum() / 2 for x, y in zip(features, labels, strict=True)])


def bss(features: Tensor) -> Tensor:
    n, d = features.shape
    gram = features @ features.T if n < d else features.T @ features
    return torch.linalg.eigvalsh(gram)[0]


def barlow(first: Tensor, second: Tensor, *, off_diagonal: float = 0.1) -> Tensor:
    n, d = first.shape
    a, b = ((x - x.mean(0)) / (((x - x.mean(0)) ** 2).mean(0) + 1e-4).sqrt() for x in (first, second))
    total = torch.zeros_like(first[0, 0])
    for i in range(d):
        for j in range(d):
            c = sum(a[k, i] * b[k, j] for k in range(n)) / n
            total = total + ((c - 1) ** 2 if i == j else off_diagonal * c**2)
    return total
