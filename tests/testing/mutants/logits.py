"""Losses on logits: distillation and its kin."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from tests.testing.mutants import _slow
from tests.testing.mutants._pair import Pair

_g = torch.Generator().manual_seed(1)
_KD = {"zero_at_equality": True, "non_negative": True, "shift_invariant": True, "class_symmetric": True}
_ROWS = {**_KD, "coupled": False}


def _hot(fn: Any) -> tuple[Tensor, Tensor]:
    """At a high temperature KD is half the mean squared difference of centred logits."""
    g = torch.Generator().manual_seed(5)
    s, t = (torch.cat([x, -x], 1) for x in torch.randn(2, 4, 3, generator=g, dtype=torch.float64))
    return fn(s, t, temperature=1e4), (s - t).square().mean() / 2


def _soft(z: Tensor, temperature: float) -> Tensor:
    return (z / temperature).log_softmax(1)


def kd_without_t_squared(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    log_s, log_t = _soft(student, temperature), _soft(teacher.detach(), temperature)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def kd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    log_s, log_t = _soft(student, temperature), _soft(teacher.detach(), temperature)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def kd_mean(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    log_s, log_t = _soft(student, temperature), _soft(teacher.detach(), temperature)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="mean", log_target=True)


def kd_reversed(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    log_s, log_t = _soft(student, temperature), _soft(teacher.detach(), temperature)
    return temperature**2 * F.kl_div(log_t, log_s, reduction="batchmean", log_target=True)


def kd_softmax_twice(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    log_s, log_t = _soft(student, temperature), _soft(teacher.detach().softmax(1), temperature)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def kd_teacher_trained(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    log_s, log_t = _soft(student, temperature), _soft(teacher, temperature)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def kd_data(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    log_s, log_t = _soft(student.data, temperature), _soft(teacher.data, temperature)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def kd_log_of_softmax(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    p_s, p_t = (student / temperature).softmax(1), (teacher.detach() / temperature).softmax(1)
    return temperature**2 * F.kl_div(p_s.log(), p_t, reduction="batchmean")


def kd_over_the_batch(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    log_s, log_t = (student / temperature).log_softmax(0), (teacher.detach() / temperature).log_softmax(0)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def soft_cross_entropy(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    p_t = (teacher.detach() / temperature).softmax(1)
    return -(temperature**2) * (p_t * (student / temperature).log_softmax(1)).sum(1).mean()


def soft_cross_entropy_hard_side(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    p_t = teacher.detach().softmax(1)
    return -(temperature**2) * (p_t * (student / temperature).log_softmax(1)).sum(1).mean()


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float = 0.1) -> Tensor:
    log_p = logits.log_softmax(1)
    hit = log_p.gather(1, labels[:, None])[:, 0]
    return -((1 - smoothing) * hit + smoothing * log_p.mean(1)).mean()


def smoothed_cross_entropy_summed(logits: Tensor, labels: Tensor, *, smoothing: float = 0.1) -> Tensor:
    log_p = logits.log_softmax(1)
    hit = log_p.gather(1, labels[:, None])[:, 0]
    return -((1 - smoothing) * hit + smoothing * log_p.sum(1)).mean()


def focal(logits: Tensor, labels: Tensor, *, gamma: float = 2.0) -> Tensor:
    log_p = logits.log_softmax(1)
    here = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
    return -(here * (-torch.expm1(log_p)) ** gamma * log_p).sum(1).mean()


def focal_off_by_one(logits: Tensor, labels: Tensor, *, gamma: float = 2.0) -> Tensor:
    log_p = logits.log_softmax(1)
    here = labels[:, None] == torch.arange(1, logits.shape[1] + 1, device=labels.device)
    return -(here * (-torch.expm1(log_p)) ** gamma * log_p).sum(1).mean()


def _decoupled(split: Any, student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, beta: float) -> Tensor:
    here = labels[:, None] == torch.arange(student.shape[1], device=labels.device)
    (pair_s, others_s), (pair_t, others_t) = split(student, here), split(teacher.detach(), here)
    target = F.kl_div(pair_s, pair_t, reduction="batchmean", log_target=True)
    return alpha * target + beta * F.kl_div(others_s, others_t, reduction="batchmean", log_target=True)


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, *, alpha: float = 1.0, beta: float = 0.5) -> Tensor:
    def split(z: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        others = z.masked_fill(here, torch.finfo(z.dtype).min)
        log_p = torch.stack([z.masked_fill(~here, torch.finfo(z.dtype).min).amax(1), others.logsumexp(1)], 1)
        return log_p - z.logsumexp(1, keepdim=True), others.log_softmax(1)

    return _decoupled(split, student, teacher, labels, alpha, beta)


def dkd_thousand(student: Tensor, teacher: Tensor, labels: Tensor, *, alpha: float = 1.0, beta: float = 0.5) -> Tensor:
    def split(z: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        others = z - 1000.0 * here
        log_p = torch.stack([z.masked_fill(~here, torch.finfo(z.dtype).min).amax(1), others.logsumexp(1)], 1)
        return log_p - z.logsumexp(1, keepdim=True), others.log_softmax(1)

    return _decoupled(split, student, teacher, labels, alpha, beta)


def dkd_one_minus_p(
    student: Tensor, teacher: Tensor, labels: Tensor, *, alpha: float = 1.0, beta: float = 0.5
) -> Tensor:
    def split(z: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        others = z.masked_fill(here, torch.finfo(z.dtype).min)
        p = (z.softmax(1) * here).sum(1)
        return torch.stack([p, 1 - p], 1).log(), others.log_softmax(1)

    return _decoupled(split, student, teacher, labels, alpha, beta)


def _standard(x: Tensor, dim: int, eps: float) -> Tensor:
    x = x - x.mean(dim, keepdim=True)
    return x / (x.square().sum(dim, keepdim=True) + eps**2).sqrt()


def dist(student: Tensor, teacher: Tensor, *, beta: float = 1.0, gamma: float = 1.0, eps: float = 1e-3) -> Tensor:
    p_s, p_t = student.softmax(1), teacher.detach().softmax(1)
    rows = (_standard(p_s, 1, eps) - _standard(p_t, 1, eps)).square().sum(1).mean() / 2
    columns = (_standard(p_s, 0, eps) - _standard(p_t, 0, eps)).square().sum(0).mean() / 2
    return beta * rows + gamma * columns


def dist_rows_twice(
    student: Tensor, teacher: Tensor, *, beta: float = 1.0, gamma: float = 1.0, eps: float = 1e-3
) -> Tensor:
    p_s, p_t = student.softmax(1), teacher.detach().softmax(1)
    rows = (_standard(p_s, 1, eps) - _standard(p_t, 1, eps)).square().sum(1).mean() / 2
    columns = (_standard(p_s, 1, eps) - _standard(p_t, 1, eps)).square().sum(1).mean() / 2
    return beta * rows + gamma * columns


def kd_standardised(student: Tensor, teacher: Tensor, *, temperature: float = 2.0, eps: float = 1e-4) -> Tensor:
    def standard(z: Tensor) -> Tensor:
        return (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + eps**2).sqrt()

    return tt.losses.kd(standard(student), standard(teacher), temperature=temperature)


def kd_standardised_over_the_batch(
    student: Tensor, teacher: Tensor, *, temperature: float = 2.0, eps: float = 1e-4
) -> Tensor:
    def standard(z: Tensor) -> Tensor:
        return (z - z.mean(0, keepdim=True)) / (z.var(0, correction=0, keepdim=True) + eps**2).sqrt()

    return tt.losses.kd(standard(student), standard(teacher), temperature=temperature)


def ensemble(student: Tensor, teachers: Tensor, *, temperature: float = 4.0) -> Tensor:
    p_t = (teachers.detach() / temperature).softmax(2).mean(0)
    return temperature**2 * (torch.special.xlogy(p_t, p_t) - p_t * _soft(student, temperature)).sum(1).mean()


def ensemble_of_logits(student: Tensor, teachers: Tensor, *, temperature: float = 4.0) -> Tensor:
    p_t = (teachers.detach().mean(0) / temperature).softmax(1)
    return temperature**2 * (torch.special.xlogy(p_t, p_t) - p_t * _soft(student, temperature)).sum(1).mean()


def hard_teacher(student: Tensor, teacher: Tensor) -> Tensor:
    return F.cross_entropy(student, teacher.detach().argmax(1))


def hard_teacher_twice(student: Tensor, teacher: Tensor) -> Tensor:
    return F.cross_entropy(student.softmax(1), teacher.detach().argmax(1))


def nkd(student: Tensor, teacher: Tensor, labels: Tensor, *, gamma: float = 1.5) -> Tensor:
    here, out = labels[:, None] == torch.arange(student.shape[1], device=labels.device), torch.finfo(student.dtype).min
    target = (teacher.detach().softmax(1) * student.log_softmax(1) * here).sum(1)
    q_t, log_q = teacher.detach().masked_fill(here, out).softmax(1), student.masked_fill(here, out).log_softmax(1)
    return -(target + gamma * (q_t * log_q.masked_fill(here, 0.0)).sum(1)).mean()


def nkd_not_normalised(student: Tensor, teacher: Tensor, labels: Tensor, *, gamma: float = 1.5) -> Tensor:
    here, out = labels[:, None] == torch.arange(student.shape[1], device=labels.device), torch.finfo(student.dtype).min
    target = (teacher.detach().softmax(1) * student.log_softmax(1) * here).sum(1)
    q_t, log_q = teacher.detach().softmax(1), student.masked_fill(here, out).log_softmax(1)
    return -(target + gamma * (q_t * log_q.masked_fill(here, 0.0)).sum(1)).mean()


def confident_kd(student: Tensor, teacher: Tensor, *, threshold: float = 0.5) -> Tensor:
    log_s, log_t = student.log_softmax(1), teacher.detach().log_softmax(1)
    sure = log_t.exp().amax(1) > threshold
    rows = (log_t.exp() * (log_t - log_s)).sum(1)
    return (sure * rows).sum() / sure.sum().clamp(min=1)


def confident_kd_picked(student: Tensor, teacher: Tensor, *, threshold: float = 0.5) -> Tensor:
    log_s, log_t = student.log_softmax(1), teacher.detach().log_softmax(1)
    sure = log_t.exp().amax(1) > threshold
    rows = (log_t.exp() * (log_t - log_s)).sum(1)
    return rows[sure].mean()


_SIZE = {"non_negative": True, "shift_invariant": True, "coupled": False}

# fmt: off
PAIRS: tuple[Pair, ...] = (
    Pair("kd-temperature-squared-dropped", "loss", tt.losses.kd, kd_without_t_squared,
         "the first slip of every KD loop; torchdistill drops it with alpha=0",
         tags={**_ROWS, "double_backward": True}, reference=_slow.kd, limits={"hot": _hot}),
    Pair("kd-mean-for-batchmean", "loss", kd, kd_mean, "neural-compressor: kl_div's default divides by n * c",
         tags=_ROWS, reference=_slow.kd, limits={"hot": _hot}),
    Pair("kd-direction-swapped", "loss", kd, kd_reversed, "Adlik: Keras' KLDivergence()(student, teacher)",
         tags=_ROWS, reference=_slow.kd),
    Pair("kd-softmax-of-probabilities", "loss", kd, kd_softmax_twice,
         "e2eAIOK: saved probabilities are divided by T and softmaxed again", tags=_ROWS),
    Pair("kd-teacher-not-detached", "loss", kd, kd_teacher_trained, "Adlik, e2eAIOK", tags=_KD),
    Pair("kd-student-data", "loss", kd, kd_data, ".data on both sides, from old code", tags=_ROWS),
    Pair("kd-log-of-softmax", "loss", kd, kd_log_of_softmax, "a probability of 0 has no logarithm",
         tags=_ROWS, reference=_slow.kd),
    Pair("kd-softmax-over-the-batch", "loss", kd, kd_over_the_batch, "dim 0 for dim 1", tags=_KD),
    Pair("kd-positions-summed", "loss", tt.losses.kd, kd, "batchmean on a map sums over its positions",
         example=tuple(torch.randn(2, 5, 3, 3, generator=_g) for _ in range(2)), tags=_ROWS, reference=_slow.kd_map),
    Pair("soft-cross-entropy-teacher-not-softened", "loss", soft_cross_entropy, soft_cross_entropy_hard_side,
         "the temperature on one side only", tags=_SIZE),
    Pair("label-smoothing-sum-for-mean", "loss", smoothed_cross_entropy, smoothed_cross_entropy_summed,
         "the smoothed part is a mean over classes", tags={**_SIZE, "class_symmetric": True},
         reference=_slow.smoothed_cross_entropy),
    Pair("focal-label-off-by-one", "loss", focal, focal_off_by_one, "labels that count from 1 in another data set",
         tags={**_SIZE, "class_symmetric": True}),
    Pair("dkd-minus-a-thousand", "loss", dkd, dkd_thousand, "mdistiller#27: the mask of DKD", tags=_ROWS),
    Pair("dkd-log-of-one-minus-p", "loss", dkd, dkd_one_minus_p, "mdistiller#60, CTKD#9: NaN for confident logits",
         tags=_ROWS, reference=_slow.dkd),
    Pair("dist-rows-counted-twice", "loss", dist, dist_rows_twice, "copy and paste: columns are never looked at",
         tags={**_KD, "coupled": True}, reference=_slow.dist),
    Pair("logit-standardisation-over-the-batch", "loss", kd_standardised, kd_standardised_over_the_batch,
         "the rows of a batch must not see each other", tags=_ROWS),
    Pair("ensemble-of-logits", "loss", ensemble, ensemble_of_logits, "Adlik averages logits, not probabilities",
         example=(torch.randn(6, 5, generator=_g), 2 * torch.randn(3, 6, 5, generator=_g)),
         tags={"non_negative": True, "detaches": ("teachers",)}, reference=_slow.ensemble),
    Pair("hard-teacher-softmax-before-cross-entropy", "loss", hard_teacher, hard_teacher_twice,
         "F.cross_entropy wants logits", reference=_slow.hard_teacher,
         tags={"not_stationary": "the hard label asks for more confidence than the teacher has", "coupled": False}),
    Pair("nkd-others-not-normalised", "loss", nkd, nkd_not_normalised, "the others need their own softmax",
         tags={"not_stationary": "the target part asks for all of the mass", **_SIZE}, reference=_slow.nkd),
    Pair("confident-kd-boolean-index", "loss", confident_kd, confident_kd_picked,
         "MLLD picks rows by a mask: shapes depend on data, and the mean of no row is NaN", tags=_KD),
)
# fmt: on
