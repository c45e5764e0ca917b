"""Losses on predictions for rows without labels."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from tests.testing.mutants import _slow_domains
from tests.testing.mutants._pair import Pair

_g = torch.Generator().manual_seed(4)


def entropy_eps(logits: Tensor) -> Tensor:
    p = logits.softmax(1)
    return -(p * (p + 1e-5).log()).sum(1).mean()


def self_information(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean() / math.log(max(logits.shape[1], 2))


def self_information_base_two(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean() / math.log2(max(logits.shape[1], 2))


def _ramped(logits: Tensor, step: int) -> Tensor:
    return (2 / (1 + math.exp(-step / 100)) - 1) * tt.losses.entropy(logits)


def ramped_entropy(logits: Tensor, *, step: int = 200) -> Tensor:
    return _ramped(logits, step)


_steps = [0]


def ramped_entropy_counting(logits: Tensor, *, step: int = 200) -> Tensor:
    _steps[0] += 1
    return _ramped(logits, step + _steps[0])


def information_maximisation(logits: Tensor) -> Tensor:
    log_mean = logits.log_softmax(1).logsumexp(0) - math.log(len(logits))
    return tt.losses.entropy(logits) + (log_mean.exp() * log_mean).sum()


def information_maximisation_of_mean_logits(logits: Tensor) -> Tensor:
    log_mean = logits.mean(0).log_softmax(0)
    return tt.losses.entropy(logits) + (log_mean.exp() * log_mean).sum()


def mcc(logits: Tensor, *, temperature: float = 2.5) -> Tensor:
    log_p = (logits / temperature).log_softmax(1)
    weight = 1 + (log_p.exp() * log_p).sum(1).exp()
    joint = log_p[:, :, None] + log_p[:, None] + weight.log()[:, None, None]
    return 1 - joint.logsumexp(0).softmax(1).diagonal().mean()


def mcc_unsure_first(logits: Tensor, *, temperature: float = 2.5) -> Tensor:
    log_p = (logits / temperature).log_softmax(1)
    weight = 1 + (-(log_p.exp() * log_p)).sum(1).exp()
    joint = log_p[:, :, None] + log_p[:, None] + weight.log()[:, None, None]
    return 1 - joint.logsumexp(0).softmax(1).diagonal().mean()


def bnm(logits: Tensor) -> Tensor:
    p = logits.softmax(1).to(torch.promote_types(logits.dtype, torch.float32))
    return -(torch.linalg.svdvals(p).sum() / p.shape[0]).to(logits.dtype)


def bnm_by_classes(logits: Tensor) -> Tensor:
    p = logits.softmax(1).to(torch.promote_types(logits.dtype, torch.float32))
    return -(torch.linalg.svdvals(p).sum() / p.shape[1]).to(logits.dtype)


def disagreement(first_logits: Tensor, second_logits: Tensor) -> Tensor:
    return (first_logits.softmax(1) - second_logits.softmax(1)).abs().mean()


def disagreement_of_logits(first_logits: Tensor, second_logits: Tensor) -> Tensor:
    return (first_logits - second_logits).abs().mean()


def fix_match(strong: Tensor, weak: Tensor, *, threshold: float = 0.5) -> Tensor:
    sure, guess = weak.detach().softmax(1).max(1)
    return (F.cross_entropy(strong, guess, reduction="none") * (sure > threshold)).mean()


def fix_match_over_the_sure(strong: Tensor, weak: Tensor, *, threshold: float = 0.5) -> Tensor:
    sure, guess = weak.detach().softmax(1).max(1)
    return (F.cross_entropy(strong, guess, reduction="none") * (sure > threshold)).sum() / (sure > threshold).sum()


def mean_teacher(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.softmax(1) - teacher.detach().softmax(1)).square().sum(1).mean()


def mean_teacher_worst_row(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.softmax(1) - teacher.detach().softmax(1)).square().sum(1).max()


def noisy_teacher(student: Tensor, teacher: Tensor, noise: Tensor, *, strength: float = 0.1) -> Tensor:
    return tt.losses.kd(student, teacher * (1 + strength * noise.detach()))


def noisy_teacher_global(student: Tensor, teacher: Tensor, noise: Tensor, *, strength: float = 0.1) -> Tensor:
    return tt.losses.kd(student, teacher * (1 + strength * torch.randn_like(noise)))


def _uniform(fn: Any) -> tuple[Tensor, Tensor]:
    return fn(torch.zeros(3, 7, dtype=torch.float64)), torch.ones((), dtype=torch.float64)


_CLASSES = {"shift_invariant": True, "class_symmetric": True}
_KD = {**_CLASSES, "zero_at_equality": True, "non_negative": True, "coupled": False}

# fmt: off
PAIRS: tuple[Pair, ...] = (
    Pair("entropy-eps-inside-log", "loss", tt.losses.entropy, entropy_eps, "log(p + 1e-5) against log 0",
         tags={**_CLASSES, "non_negative": True, "coupled": False, "double_backward": True},
         reference=_slow_domains.entropy),
    Pair("self-information-two-bases", "loss", self_information, self_information_base_two,
         "AdvEnt is log2 over log2: natural logarithms above", limits={"uniform": _uniform},
         tags={**_CLASSES, "non_negative": True, "coupled": False}),
    Pair("ramped-entropy-counts-calls", "loss", ramped_entropy, ramped_entropy_counting,
         "TLlib, e2eAIOK: the step of the schedule is state of the layer", tags={**_CLASSES, "coupled": False}),
    Pair("diversity-of-mean-logits", "loss", information_maximisation, information_maximisation_of_mean_logits,
         "the mean of logits is not the mean of predictions", tags={**_CLASSES, "coupled": True}),
    Pair("mcc-weighs-the-unsure", "loss", mcc, mcc_unsure_first, "exp(H) for exp(-H)",
         tags={**_CLASSES, "non_negative": True, "coupled": True}, reference=_slow_domains.mcc),
    Pair("bnm-divided-by-classes", "loss", bnm, bnm_by_classes, "the nuclear norm over the batch size is meant",
         tags={**_CLASSES, "coupled": True}, reference=_slow_domains.bnm),
    Pair("disagreement-of-logits", "loss", disagreement, disagreement_of_logits, "MCD compares predictions",
         example=tuple(torch.randn(2, 6, 5, generator=_g)),
         tags={**_CLASSES, "zero_at_equality": True, "non_negative": True, "symmetric": True, "coupled": False}),
    Pair("fix-match-over-the-sure", "loss", fix_match, fix_match_over_the_sure, "0 / 0 while nobody is sure yet",
         example=tuple(2 * torch.randn(2, 6, 4, generator=_g)), reference=_slow_domains.fix_match,
         tags={"non_negative": True, "shift_invariant": True, "coupled": False, "detaches": ("weak",)}),
    Pair("mean-teacher-worst-row", "loss", mean_teacher, mean_teacher_worst_row, "max for mean", tags=_KD),
    Pair("noisy-teacher-global-noise", "loss", noisy_teacher, noisy_teacher_global,
         "drawn inside the loss: another value at each call", example=tuple(torch.randn(3, 6, 5, generator=_g)),
         tags={"non_negative": True, "coupled": False, "detaches": ("noise",),
               "not_stationary": "the noise moves the teacher"}),
)
# fmt: on
