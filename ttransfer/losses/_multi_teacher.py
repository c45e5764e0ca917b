"""Several teachers: their logits made one, or each one's divergence weighed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import divergence, wide
from ttransfer.losses._check import want_floats


def mean_logits(teachers: Tensor) -> Tensor:
    r"""Average the logits of several teachers: the geometric mean of their predictions.

    .. math:: \frac1k \sum_e t_{e}

    Args:
        teachers: logits (k, n, classes) or (k, n, classes, ...), one teacher above the other.

    Returns:
        Logits (n, classes) or (n, classes, ...), for any loss of one teacher.

    Raises:
        TransferError: for what is no stack of logits, or no teacher.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.losses.mean_logits(torch.tensor([[[1.0, 0.0]], [[3.0, 2.0]]])).tolist()
        [[2.0, 1.0]]

    Checked against:
        A loop.

    Peers:
        Adlik's Ensemble, by the mode "mean".

    References:
        Shan You, Chang Xu, Chao Xu, Dacheng Tao. Learning from Multiple Teacher Networks. 2017.
    """
    _want_teachers("mean_logits", teachers)
    return wide(teachers)[0].mean(0).to(teachers.dtype)


def max_logits(teachers: Tensor) -> Tensor:
    r"""Take the largest logit of several teachers, class by class.

    .. math:: \max_e t_{e}

    Logits of teachers that were trained apart have offsets of their own: one whose logits are higher throughout wins
    everywhere. Take off each row's mean first, or `standardize`, where that is not meant.

    Args:
        teachers: logits (k, n, classes) or (k, n, classes, ...), one teacher above the other.

    Returns:
        Logits (n, classes) or (n, classes, ...), for any loss of one teacher.

    Raises:
        TransferError: for what is no stack of logits, or no teacher.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.losses.max_logits(torch.tensor([[[1.0, 5.0]], [[3.0, 2.0]]])).tolist()
        [[3.0, 5.0]]

    Checked against:
        A loop.

    Peers:
        Adlik's Ensemble, by the mode "max".

    References:
        Shan You, Chang Xu, Chao Xu, Dacheng Tao. Learning from Multiple Teacher Networks. 2017.
    """
    _want_teachers("max_logits", teachers)
    return teachers.amax(0)


def mean_probabilities(teachers: Tensor, *, temperature: float | Tensor = 1.0) -> Tensor:
    r"""Average the softened predictions of several teachers; return logits of which that average is the softmax.

    .. math:: T \, \log \frac1k \sum_e \mathrm{softmax}(t_e / T)

    Logits rather than probabilities, so that any loss of one teacher takes them: at the same temperature their
    softened prediction is the mean. In logarithms throughout, so that no small probability is lost.

    Args:
        teachers: logits (k, n, classes) or (k, n, classes, ...), one teacher above the other.
        temperature: T > 0, that of the loss that is to take the result.

    Returns:
        Logits (n, classes) or (n, classes, ...), at most 0.

    Raises:
        TransferError: for what is no stack of logits, or no teacher.

    Example:
        >>> import torch, ttransfer as tt
        >>> one, other = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> [round(p, 4) for p in tt.losses.mean_probabilities(torch.stack([one, other])).softmax(1)[0].tolist()]
        [0.7, 0.3]

    Checked against:
        A loop.

    Peers:
        None of the peers has it.

    References:
        Shan You, Chang Xu, Chao Xu, Dacheng Tao. Learning from Multiple Teacher Networks. 2017.
    """
    _want_teachers("mean_probabilities", teachers)
    (t,) = wide(teachers)
    log_mean = (t / temperature).log_softmax(2).logsumexp(0) - math.log(t.shape[0])
    return (temperature * log_mean).to(teachers.dtype)


@claims(coupled=False, non_negative=True, shift_invariant=True, double_backward=True)
def multi_teacher_kd(
    student: Tensor,
    teachers: Tensor,
    weights: Tensor | None = None,
    *,
    temperature: float | Tensor = 4.0,
) -> Tensor:
    r"""`kd` from each of several teachers, weighed by teacher or by teacher and row.

    .. math::
        \frac{T^2}{n} \sum_i \sum_e w_{ei} \,
        \mathrm{KL}\bigl(\mathrm{softmax}(t_{ei} / T) \,\|\, \mathrm{softmax}(s_i / T)\bigr)

    Weights are taken as they are, not made to add up to 1. Weights such as a teacher's sureness of the label make
    the adaptive variants.

    Args:
        student: logits (n, classes).
        teachers: logits (k, n, classes); get no gradient.
        weights: (k,) or (k, n), not negative; None for 1/k.
        temperature: T > 0, in units of the logits.

    Returns:
        A scalar in nats, at least 0 (up to rounding): a mean over rows, a weighted sum over teachers.

    Raises:
        TransferError: for teachers that do not fit the student, or weights that do not fit the teachers.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teachers = torch.tensor([[0.0, 0.0]]), torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]])
        >>> round(tt.losses.multi_teacher_kd(student, teachers, temperature=2.0).item(), 4)  # half of 0.4438
        0.2219
        >>> round(tt.losses.multi_teacher_kd(student, teachers, torch.tensor([1.0, 0.0]), temperature=2.0).item(), 4)
        0.4438

    Checked against:
        `kd` with each teacher, and a loop.

    Peers:
        None of the peers has weights by row.

    References:
        Shan You, Chang Xu, Chao Xu, Dacheng Tao. Learning from Multiple Teacher Networks. 2017.
        Hailin Zhang, Defang Chen, Can Wang. Confidence-Aware Multi-Teacher Knowledge Distillation. 2022.
    """
    _want_teachers("multi_teacher_kd", teachers)
    if student.ndim != 2 or teachers.shape[1:] != student.shape:
        raise TransferError(
            f"multi_teacher_kd: wanted a student (n, classes) and teachers (k, n, classes), "
            f"got student {shown(student)} and teachers {shown(teachers)}"
        )
    want_floats("multi_teacher_kd", student=student)
    k, n = teachers.shape[:2]
    s, t = wide(student, teachers.detach())
    rows = divergence((s / temperature)[None], t / temperature, 2)
    if weights is None:
        value = rows.mean()
    elif weights.shape in ((k,), (k, n)):
        value = (rows * weights.to(s.dtype).reshape(k, -1)).sum() / n
    else:
        raise TransferError(
            f"multi_teacher_kd: wanted weights (k,) or (k, n), got weights {shown(weights)} "
            f"and teachers {shown(teachers)}"
        )
    return (temperature**2 * value).to(torch.promote_types(student.dtype, teachers.dtype))


def _want_teachers(called: str, teachers: Tensor) -> None:
    want_floats(called, teachers=teachers)
    if teachers.ndim < 3 or teachers.shape[0] == 0:
        raise TransferError(f"{called}: wanted teachers (k, n, classes, ...), at least one; got {shown(teachers)}")
