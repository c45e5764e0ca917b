"""Distillation from saved predictions: the largest logits of a teacher, and what the other classes share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_floats, want_logits


def save_topk(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    r"""Take what `topk_kd` needs of a teacher's logits: the k largest, and one for each of the others.

    .. math::
        (z_{(1)}, \ldots, z_{(k)}, \bar z), \qquad \bar z = \log \frac{1}{c - k} \sum_{j > k} \exp z_{(j)}

    Logits rather than probabilities: no temperature is taken yet, no small probability is rounded to 0, and half
    precision is enough to save them. The last number gives the classes that are not saved the mean of their
    probabilities, so that at a temperature of 1 they have together what they had.

    Args:
        logits: (n, classes).
        k: how many to save, from 1 to the number of classes.

    Returns:
        The values (n, k + 1), from the largest on and the shared one last, and the classes (n, k) of the first k.
        Where all are saved the last value is 0 and means nothing.

    Raises:
        TransferError: for what is not (n, classes), or a k that there is not.

    Example:
        >>> import torch, ttransfer as tt
        >>> values, indices = tt.losses.save_topk(torch.tensor([[1.0, 5.0, 1.0]]), 1)
        >>> [round(x, 4) for x in values[0].tolist()], indices.tolist()
        ([5.0, 1.0], [[1]])

    Checked against:
        A loop.

    Peers:
        e2eAIOK saves probabilities in float16 and classes in int16, which end at 32767.

    References:
        Kan Wu, Jinnian Zhang, Houwen Peng, Mengchen Liu, Bin Xiao, Jianlong Fu, Lu Yuan.
        TinyViT: Fast Pretraining Distillation for Small Vision Transformers. 2022.
    """
    want_logits("save_topk", logits=logits)
    if logits.ndim != 2 or not 1 <= k <= logits.shape[1]:
        raise TransferError(f"save_topk: wanted logits (n, classes) and 1 <= k <= classes, got {shown(logits)}, k={k}")
    (z,) = wide(logits)
    values, indices = z.topk(k, 1)
    left = logits.shape[1] - k
    if left == 0:
        shared = torch.zeros_like(values[:, :1])
    else:
        shared = z.scatter(1, indices, -torch.inf).logsumexp(1, keepdim=True) - math.log(left)
    return torch.cat([values, shared], 1).to(logits.dtype), indices


@claims(
    coupled=False,
    non_negative=True,
    shift_invariant=True,
    double_backward=True,
    detaches=("values",),
)
def topk_kd(student: Tensor, values: Tensor, indices: Tensor, *, temperature: float | Tensor = 4.0) -> Tensor:
    r"""`kd` from a teacher of whom the k largest logits were saved.

    .. math::
        T^2 \, \frac1n \sum_i \mathrm{KL}\bigl(\mathrm{softmax}(\tilde t_i / T) \,\|\, \mathrm{softmax}(s_i / T)\bigr)

    The teacher's logits are the saved ones at their classes, and the shared one at each other class, of which none is
    written out. The temperature is taken once, of these logits. At a temperature of 1 the saved classes have the
    probabilities that they had and the others their mean; at another the others are even as well.

    Args:
        student: logits (n, classes).
        values: saved logits (n, k + 1) as `save_topk` gives them: those of the indices, then the shared one. Any
            floating dtype; they get no gradient.
        indices: classes (n, k), whole numbers, each at most once in a row.
        temperature: T > 0, in units of the logits.

    Returns:
        A scalar in nats, at least 0 (up to rounding).

    Raises:
        TransferError: for shapes or dtypes that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(1, 4), torch.tensor([[9.0, 2.0, 2.0, 2.0]])
        >>> saved = tt.losses.save_topk(teacher, 1)
        >>> round(tt.losses.topk_kd(student, *saved).item() - tt.losses.kd(student, teacher).item(), 4)
        0.0

    Checked against:
        `kd` with the logits written out, and a loop.

    Peers:
        e2eAIOK takes saved probabilities for logits, so that they are softened twice and end nearly uniform.

    References:
        Kan Wu, Jinnian Zhang, Houwen Peng, Mengchen Liu, Bin Xiao, Jianlong Fu, Lu Yuan.
        TinyViT: Fast Pretraining Distillation for Small Vision Transformers. 2022.
    """
    want_logits("topk_kd", student=student)
    want_floats("topk_kd", values=values)
    n, classes = student.shape[0], student.shape[1]
    k = indices.shape[-1] if indices.ndim == 2 else 0
    fits = student.ndim == 2 and values.shape == (n, k + 1) and indices.shape == (n, k) and 1 <= k <= classes
    if not fits or indices.is_floating_point():
        raise TransferError(
            "topk_kd: wanted a student (n, classes), values (n, k + 1) and whole indices (n, k), got student "
            f"{shown(student)}, values {shown(values)} and indices {shown(indices)}; see save_topk"
        )
    s, t = wide(student, values.detach())
    log_s, t = (s / temperature).log_softmax(1), t / temperature
    saved, shared, left = t[:, :-1], t[:, -1:], classes - k
    own = log_s.gather(1, indices.long())
    if left == 0:
        log_t = saved.log_softmax(1)
        rows = (log_t.exp() * (log_t - own)).sum(1)
    else:
        log_t = torch.cat([saved, shared + math.log(left)], 1).log_softmax(1)
        # The last entry is that of all others together.
        log_each, others = log_t[:, -1] - math.log(left), log_s.sum(1) - own.sum(1)
        rows = (log_t[:, :-1].exp() * (log_t[:, :-1] - own)).sum(1)
        rows = rows + log_each.exp() * (left * log_each - others)
    return (temperature**2 * rows).mean().to(student.dtype)
