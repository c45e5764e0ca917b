"""Losses on features: hints, attention, relations, contrast."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.testing.mutants import _slow
from tests.testing.mutants._pair import Pair

_g = torch.Generator().manual_seed(2)
_ONE = {"zero_at_equality": True, "non_negative": True, "coupled": False}
_RELATION = {**_ONE, "coupled": True, "rotation_invariant": True}


def _maps(count: int = 2) -> tuple[Tensor, ...]:
    return tuple(torch.randn(3, 4, 2, 3, generator=_g) for _ in range(count))


def _unit(x: Tensor, dim: int = -1) -> Tensor:
    squared = x.square().sum(dim, keepdim=True)
    return x / torch.where(squared > torch.finfo(x.dtype).tiny, squared, 1.0).sqrt()


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher.detach()).square().mean()


def hint_summed(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher.detach()).square().sum() / student.shape[0]


def token_hint(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    gaps = (student - teacher.detach()).square().mean(2)
    return (gaps * mask).sum() / mask.sum().clamp(min=1)


def token_hint_padded(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    gaps = (student - teacher.detach()).square().mean(2)
    return (gaps * mask).mean()


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    q_s, q_t = (_unit(x.square().mean(1).flatten(1)) for x in (student, teacher.detach()))
    return (q_s - q_t).square().mean()


def attention_normalised_over_the_batch(student: Tensor, teacher: Tensor) -> Tensor:
    q_s, q_t = (_unit(x.square().mean(1).flatten(1), 0) for x in (student, teacher.detach()))
    return (q_s - q_t).square().mean()


def attention_flat_view(student: Tensor, teacher: Tensor) -> Tensor:
    q_s, q_t = (x.view(x.shape[0], x.shape[1], -1).square().mean(1) for x in (student, teacher.detach()))
    return (_unit(q_s) - _unit(q_t)).square().mean()


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    g_s, g_t = (x.flatten(1) @ x.flatten(1).mT for x in (student, teacher.detach()))
    return (_unit(g_s) - _unit(g_t)).square().mean()


def similarity_p_for_dim(student: Tensor, teacher: Tensor) -> Tensor:
    g_s, g_t = (x.flatten(1) @ x.flatten(1).mT for x in (student, teacher.detach()))
    return (F.normalize(g_s, 1) - F.normalize(g_t, 1)).square().mean()


def _differences(x: Tensor) -> Tensor:
    """All x_i - x_j in float32 at least, with what is only rounding set to zero."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    gaps = x[:, None] - x
    rounding = (16 * torch.finfo(x.dtype).eps) ** 2 * x.detach().square().sum(1).amax()
    return gaps.masked_fill(gaps.detach().square().sum(2, keepdim=True) <= rounding, 0.0)


def _relative(d: Tensor) -> Tensor:
    mean = d.sum() / (d > 0).sum().clamp(min=1)
    return d / torch.where(mean > 0, mean, 1.0)


def _lengths(gaps: Tensor) -> Tensor:
    squared = gaps.square().sum(2)
    return torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    d_s, d_t = (_relative(_lengths(_differences(x))) for x in (student, teacher.detach()))
    return F.smooth_l1_loss(d_s, d_t).to(student.dtype)


def rkd_distance_picked(student: Tensor, teacher: Tensor) -> Tensor:
    d_s, d_t = (_lengths(_differences(x)) for x in (student, teacher.detach()))
    return F.smooth_l1_loss(d_s / d_s[d_s > 0].mean(), d_t / d_t[d_t > 0].mean()).to(student.dtype)


def rkd_distance_bare_root(student: Tensor, teacher: Tensor) -> Tensor:
    own = torch.eye(len(student), dtype=student.dtype, device=student.device)
    roots = (((x[:, None] - x).square().sum(2) + own).sqrt() for x in (student, teacher.detach()))
    d_s, d_t = (_relative(d * (1 - own)) for d in roots)
    return F.smooth_l1_loss(d_s, d_t).to(student.dtype)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    e_s, e_t = (_unit(_differences(x)) for x in (student, teacher.detach()))
    return F.smooth_l1_loss(e_s @ e_s.mT, e_t @ e_t.mT).to(student.dtype)


def rkd_angle_wrong_axis(student: Tensor, teacher: Tensor) -> Tensor:
    e_s, e_t = (_unit(_differences(x), 1) for x in (student, teacher.detach()))
    return F.smooth_l1_loss(e_s @ e_s.mT, e_t @ e_t.mT).to(student.dtype)


def pkt(student: Tensor, teacher: Tensor, *, eps: float = 1e-6) -> Tensor:
    k_s, k_t = ((_unit(x) @ _unit(x).mT).clamp(-1, 1) / 2 + 0.5 + eps for x in (student, teacher.detach()))
    p_s, p_t = (k / k.sum(1, keepdim=True) for k in (k_s, k_t))
    return (p_t * (p_t.log() - p_s.log())).sum(1).mean()


def pkt_not_normalised(student: Tensor, teacher: Tensor, *, eps: float = 1e-6) -> Tensor:
    p_s, p_t = ((_unit(x) @ _unit(x).mT).clamp(-1, 1) / 2 + 0.5 + eps for x in (student, teacher.detach()))
    return (p_t * (p_t.log() - p_s.log())).sum(1).mean()


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    a, b = _unit(student.flatten(2)), _unit(teacher.detach().flatten(2))
    return sum(w * (x @ y.mT).square().mean() for w, x, y in ((1, a, a), (1, b, b), (-2, a, b)))


def nst_cross_once(student: Tensor, teacher: Tensor) -> Tensor:
    a, b = _unit(student.flatten(2)), _unit(teacher.detach().flatten(2))
    return sum(w * (x @ y.mT).square().mean() for w, x, y in ((1, a, a), (1, b, b), (-1, a, b)))


def correlation(student: Tensor, teacher: Tensor, *, gamma: float = 0.4) -> Tensor:
    g_s, g_t = (2 * gamma * _unit(x) @ _unit(x).mT for x in (student, teacher.detach()))
    k_s, k_t = (math.exp(-2 * gamma) * (1 + g + g**2 / 2) for g in (g_s, g_t))
    return (k_s - k_t).square().mean()


def correlation_without_factorial(student: Tensor, teacher: Tensor, *, gamma: float = 0.4) -> Tensor:
    g_s, g_t = (2 * gamma * _unit(x) @ _unit(x).mT for x in (student, teacher.detach()))
    k_s, k_t = (math.exp(-2 * gamma) * (1 + g + g**2) for g in (g_s, g_t))
    return (k_s - k_t).square().mean()


def vid(student: Tensor, teacher: Tensor, raw_scale: Tensor) -> Tensor:
    variance = F.softplus(raw_scale) + 1e-5
    return ((student - teacher.detach()).square() / variance + variance.log()).mean() / 2


def vid_log_of_deviation(student: Tensor, teacher: Tensor, raw_scale: Tensor) -> Tensor:
    variance = F.softplus(raw_scale) + 1e-5
    return ((student - teacher.detach()).square() / variance + variance.sqrt().log()).mean() / 2


def cwd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    log_s, log_t = ((x.flatten(2) / temperature).log_softmax(2) for x in (student, teacher.detach()))
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(2).mean()


def cwd_over_channels(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    log_s, log_t = ((x.flatten(2) / temperature).log_softmax(1) for x in (student, teacher.detach()))
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(2).mean()


def info_nce(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    alike = _unit(student) @ _unit(teacher.detach()).mT / temperature
    return -alike.log_softmax(1).diagonal().mean()


def info_nce_eye(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    alike = _unit(student) @ _unit(teacher.detach()).mT / temperature
    return -(alike.log_softmax(1) @ torch.eye(len(alike))).trace() / len(alike)


_largest: dict[str, Tensor] = {}


def info_nce_remembered(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    alike = _unit(student) @ _unit(teacher.detach()).mT / temperature
    total = _largest.setdefault("total", alike.detach().logsumexp(1).mean())
    return total - alike.diagonal().mean()


def _friends(labels: Tensor) -> tuple[Tensor, Tensor]:
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return (labels[:, None] == labels) & ~own, own


def sup_con(features: Tensor, labels: Tensor, *, temperature: float = 0.5) -> Tensor:
    friends, own = _friends(labels)
    alike = _unit(features) @ _unit(features).mT / temperature
    log_p = alike - alike.masked_fill(own, torch.finfo(alike.dtype).min).logsumexp(1, keepdim=True)
    return -((log_p * friends).sum(1) / friends.sum(1).clamp(min=1)).mean()


def sup_con_without_friends(features: Tensor, labels: Tensor, *, temperature: float = 0.5) -> Tensor:
    friends, own = _friends(labels)
    alike = _unit(features) @ _unit(features).mT / temperature
    log_p = alike - alike.masked_fill(own, torch.finfo(alike.dtype).min).logsumexp(1, keepdim=True)
    return -((log_p * friends).sum(1) / friends.sum(1)).mean()


def partial(student: Tensor, teacher: Tensor) -> Tensor:
    return ((student - teacher.detach()).square() * ((student > teacher) | (teacher > 0))).mean()


def partial_of_student(student: Tensor, teacher: Tensor) -> Tensor:
    return ((student - teacher.detach()).square() * ((student > teacher) | (student > 0))).mean()


def centred(student: Tensor, teacher: Tensor) -> Tensor:
    fixed = teacher.detach()
    fixed = fixed - fixed.mean((2, 3), keepdim=True)
    return (student - student.mean((2, 3), keepdim=True) - fixed).square().mean()


def centred_in_place(student: Tensor, teacher: Tensor) -> Tensor:
    fixed = teacher.detach()
    fixed -= fixed.mean((2, 3), keepdim=True)
    return (student - student.mean((2, 3), keepdim=True) - fixed).square().mean()


def pooled_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (_unit(F.adaptive_avg_pool2d(x, 1).flatten(1)) for x in (student, teacher.detach()))
    return (s - t).square().sum(1).mean() / 2


def pooled_cosine_squeezed(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (_unit(F.adaptive_avg_pool2d(x, 1).squeeze(), 1) for x in (student, teacher.detach()))
    return (s - t).square().sum(1).mean() / 2


def _flow(low: Tensor, high: Tensor) -> Tensor:
    return low.flatten(2) @ high.flatten(2).mT


def fsp(student_low: Tensor, student_high: Tensor, teacher_low: Tensor, teacher_high: Tensor) -> Tensor:
    gap = _flow(student_low, student_high) - _flow(teacher_low.detach(), teacher_high.detach())
    return (gap / student_low[0, 0].numel()).square().mean()


def fsp_divided_late(student_low: Tensor, student_high: Tensor, teacher_low: Tensor, teacher_high: Tensor) -> Tensor:
    gap = _flow(student_low, student_high) - _flow(teacher_low.detach(), teacher_high.detach())
    return gap.square().mean() / student_low[0, 0].numel()


_LOG = {"scale_invariant": True, "rotation_invariant": True, "coupled": True}

# fmt: off
PAIRS: tuple[Pair, ...] = (
    Pair("hint-summed-over-features", "loss", hint, hint_summed, "sum for mean: grows with the width",
         tags={**_ONE, "rotation_invariant": True, "double_backward": True}, reference=_slow.hint),
    Pair("token-hint-mean-over-padding", "loss", token_hint, token_hint_padded, "every second sequence loss",
         example=(*torch.randn(2, 3, 4, 5, generator=_g), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])),
         tags={"zero_at_equality": True, "non_negative": True}, reference=_slow.token_hint),
    Pair("attention-normalised-over-the-batch", "loss", attention, attention_normalised_over_the_batch,
         "F.normalize(q, dim=0)", example=_maps(), tags={**_ONE, "scale_invariant": True}),
    Pair("attention-view", "loss", attention, attention_flat_view, "view of channels-last maps raises",
         example=_maps(), tags={**_ONE, "scale_invariant": True}, reference=_slow.attention),
    Pair("similarity-p-for-dim", "loss", similarity, similarity_p_for_dim, "torchdistill: normalize(G, 1) is p=1",
         tags={**_RELATION, "scale_invariant": True}, reference=_slow.similarity),
    Pair("rkd-distance-boolean-index", "loss", rkd_distance, rkd_distance_picked, "d[d > 0].mean() in six libraries",
         tags={**_RELATION, "scale_invariant": True}, reference=_slow.rkd_distance),
    Pair("rkd-distance-bare-root", "loss", rkd_distance, rkd_distance_bare_root, "only the diagonal is cared for",
         tags={**_RELATION, "scale_invariant": True}),
    Pair("rkd-angle-wrong-axis", "loss", rkd_angle, rkd_angle_wrong_axis, "dim 1 of (n, n, d) is not the features",
         tags={**_RELATION, "scale_invariant": True}, reference=_slow.rkd_angle),
    Pair("pkt-rows-not-normalised", "loss", pkt, pkt_not_normalised, "cosines in (0, 1) are not yet chances",
         tags={**_RELATION, "scale_invariant": True}),
    Pair("nst-cross-term-once", "loss", nst, nst_cross_once, "the 2 of 2 k(s, t) forgotten", example=_maps(),
         tags={**_ONE, "scale_invariant": True}),
    Pair("correlation-without-factorial", "loss", correlation, correlation_without_factorial,
         "the Taylor series of CCKD; its ports give four numbers", tags={**_RELATION, "scale_invariant": True},
         reference=_slow.correlation),
    Pair("vid-log-of-deviation", "loss", vid, vid_log_of_deviation, "log sigma where log sigma squared is meant",
         example=tuple(torch.randn(*shape, generator=_g) for shape in ((6, 4), (6, 4), (4,))),
         tags={"coupled": False}, reference=_slow.vid),
    Pair("cwd-over-channels", "loss", cwd, cwd_over_channels, "the softmax of CWD is over positions",
         example=_maps(), tags=_ONE, reference=_slow.cwd),
    Pair("info-nce-float32-eye", "loss", info_nce, info_nce_eye, "torch.eye(n) without device and dtype",
         tags={"not_stationary": "pushes other rows away", "non_negative": True, **_LOG}, reference=_slow.info_nce),
    Pair("info-nce-remembers", "loss", info_nce, info_nce_remembered, "CRD keeps Z from the first batch",
         tags={"not_stationary": "pushes other rows away", "non_negative": True, **_LOG}),
    Pair("sup-con-no-friends", "loss", sup_con, sup_con_without_friends, "0 / 0 for a class of one row",
         tags={"non_negative": True, **_LOG}),
    Pair("partial-relu-of-student", "loss", partial, partial_of_student, "OFD asks where the teacher is positive",
         tags=_ONE, reference=_slow.partial),
    Pair("centred-in-place", "loss", centred, centred_in_place, "Adlik edits the teacher's tensors",
         example=_maps(), tags=_ONE),
    Pair("pooled-cosine-squeezed", "loss", pooled_cosine, pooled_cosine_squeezed, "squeeze() eats a batch of one",
         example=_maps(), tags={**_ONE, "scale_invariant": True}),
    Pair("fsp-divided-after-squaring", "loss", fsp, fsp_divided_late, "1 / (h w) belongs into the matrix",
         example=_maps(4), tags={**_ONE, "detaches": ("teacher_low", "teacher_high")}, reference=_slow.fsp),
)
# fmt: on
