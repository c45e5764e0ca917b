"""Slow, obvious formulas that the author of a loss would check it with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _log_p(row: Tensor) -> Tensor:
    return row - row.logsumexp(0)


def _first(row: Tensor, label: Tensor) -> Tensor:
    """Turn a row until the label's class comes first."""
    return row.gather(0, (label + torch.arange(len(row))) % len(row))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return sum(log_p[c].exp() * (log_p[c] - log_q[c]) for c in range(len(log_p)))


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def kd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    rows = zip(student, teacher.detach(), strict=True)
    return _mean([temperature**2 * _kl(_log_p(t / temperature), _log_p(s / temperature)) for s, t in rows])


def kd_map(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    columns = range(student[0, 0].numel())
    s, t = student.flatten(2), teacher.flatten(2)
    return _mean([kd(s[:, :, at], t[:, :, at], temperature=temperature) for at in columns])


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float = 0.1) -> Tensor:
    rows = zip(logits, labels, strict=True)
    return _mean([-(1 - smoothing) * _first(_log_p(z), y)[0] - smoothing * _log_p(z).mean() for z, y in rows])


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, *, alpha: float = 1.0, beta: float = 0.5) -> Tensor:
    values = []
    for s, t, y in zip(student, teacher.detach(), labels, strict=True):
        s, t = _first(s, y), _first(t, y)
        log_s, log_t = _log_p(s), _log_p(t)
        two_s = torch.stack([log_s[0], log_s[1:].logsumexp(0).clamp(min=-1e30)])
        two_t = torch.stack([log_t[0], log_t[1:].logsumexp(0).clamp(min=-1e30)])
        values.append(alpha * _kl(two_t, two_s) + beta * _kl(_log_p(t[1:]), _log_p(s[1:])))
    return _mean(values)


def dist(student: Tensor, teacher: Tensor, *, beta: float = 1.0, gamma: float = 1.0, eps: float = 1e-3) -> Tensor:
    def unit(x: Tensor) -> Tensor:
        x = x - x.mean()
        return x / (x @ x + eps**2).sqrt()

    p_s, p_t = student.softmax(1), teacher.detach().softmax(1)
    rows = [(unit(a) - unit(b)).square().sum() / 2 for a, b in zip(p_s, p_t, strict=True)]
    columns = [(unit(a) - unit(b)).square().sum() / 2 for a, b in zip(p_s.T, p_t.T, strict=True)]
    return beta * _mean(rows) + gamma * _mean(columns)


def ensemble(student: Tensor, teachers: Tensor, *, temperature: float = 4.0) -> Tensor:
    values = []
    for i, s in enumerate(student):
        log_p = [_log_p(t / temperature) for t in teachers[:, i].detach()]
        log_mean = torch.stack(log_p).logsumexp(0) - math.log(len(log_p))
        values.append(temperature**2 * _kl(log_mean, _log_p(s / temperature)))
    return _mean(values)


def hard_teacher(student: Tensor, teacher: Tensor) -> Tensor:
    return _mean([-_first(_log_p(s), t.argmax())[0] for s, t in zip(student, teacher, strict=True)])


def nkd(student: Tensor, teacher: Tensor, labels: Tensor, *, gamma: float = 1.5) -> Tensor:
    values = []
    for s, t, y in zip(student, teacher.detach(), labels, strict=True):
        s, t = _first(s, y), _first(t, y)
        others = (_log_p(t[1:]).exp() * _log_p(s[1:])).sum()
        values.append(-(_log_p(t)[0].exp() * _log_p(s)[0] + gamma * others))
    return _mean(values)


def _unit(x: Tensor) -> Tensor:
    """Scale a vector to length 1, unless it is zero."""
    return x / (x.norm() + (x == 0).all())


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    pairs = zip(student.flatten(), teacher.detach().flatten(), strict=True)
    return _mean([(s - t) ** 2 for s, t in pairs])


def token_hint(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    total = torch.zeros_like(student[0, 0, 0])
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            total = total + mask[i, j] * hint(student[i, j], teacher[i, j])
    return total / mask.sum().clamp(min=1)


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    maps = [[_unit((x**2).mean(0).flatten()) for x in side] for side in (student, teacher.detach())]
    return _mean([(s - t) ** 2 for s, t in zip(torch.cat(maps[0]), torch.cat(maps[1]), strict=True)])


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    rows = [[_unit(torch.stack([a @ b for b in x])) for a in x] for x in (student, teacher.detach())]
    return _mean([(s - t).square().mean() for s, t in zip(*rows, strict=True)])


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    def relative(x: Tensor) -> Tensor:
        d = torch.stack([(a - b).norm() for a in x for b in x])
        return d / (d.sum() / (d > 0).sum().clamp(min=1) + (d == 0).all())

    return torch.nn.functional.smooth_l1_loss(relative(student), relative(teacher.detach()))


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    def cosines(x: Tensor) -> Tensor:
        return torch.stack([_unit(a - x[i]) @ _unit(b - x[i]) for i in range(len(x)) for a in x for b in x])

    return torch.nn.functional.smooth_l1_loss(cosines(student), cosines(teacher.detach()))


def correlation(student: Tensor, teacher: Tensor, *, gamma: float = 0.4) -> Tensor:
    def kernel(x: Tensor) -> Tensor:
        g = torch.stack([2 * gamma * _unit(a) @ _unit(b) for a in x for b in x])
        return (1 + g + g * g / 2) * math.exp(-2 * gamma)

    return (kernel(student) - kernel(teacher.detach())).square().mean()


def vid(student: Tensor, teacher: Tensor, raw_scale: Tensor) -> Tensor:
    deviation = (torch.nn.functional.softplus(raw_scale) + 1e-5).sqrt()
    rows = zip(student, teacher.detach(), strict=True)
    # Minus the log density of a normal distribution, without its constant.
    return _mean([(((s - t) / deviation) ** 2 / 2 + deviation.log()).mean() for s, t in rows])


def cwd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    s, t = (x.flatten(2).flatten(0, 1) for x in (student, teacher))
    return kd(s, t, temperature=temperature)


def info_nce(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    values = []
    for i, s in enumerate(student):
        alike = torch.stack([_unit(s) @ _unit(t) / temperature for t in teacher.detach()])
        values.append(-_log_p(alike)[i])
    return _mean(values)


def partial(student: Tensor, teacher: Tensor) -> Tensor:
    pairs = zip(student.flatten(), teacher.detach().flatten(), strict=True)
    return _mean([torch.where((s <= t) & (t <= 0), 0.0, (s - t) ** 2) for s, t in pairs])


def fsp(student_low: Tensor, student_high: Tensor, teacher_low: Tensor, teacher_high: Tensor) -> Tensor:
    def flow(low: Tensor, high: Tensor) -> Tensor:
        return torch.stack([(a * b).mean() for x, y in zip(low, high, strict=True) for a in x for b in y])

    return (flow(student_low, student_high) - flow(teacher_low.detach(), teacher_high.detach())).square().mean()
