"""Logits of mean 0 and deviation 1: a student matches the relations of its teacher's logits, not their size."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import root, wide
from ttransfer.losses._check import want_logits
from ttransfer.losses._kd import kd


def standardize(logits: Tensor) -> Tensor:
    r"""Standardise each row of logits over its classes.

    .. math::
        \frac{z_i - \bar z_i}{\sigma(z_i) + 10^{-7}}, \qquad \sigma^2 = \frac{1}{c - 1} \sum_j (z_{ij} - \bar z_i)^2

    No loss but a step before one: ``kd(standardize(s), standardize(t), temperature=2.0)``, and likewise `dkd`, `mlld`
    or `ctkd`. A row of equal logits has no deviation: it becomes 0, with a slope of 0.

    Args:
        logits: (n, classes) or (n, classes, ...), of at least two classes.

    Returns:
        A tensor of the same shape and dtype, without units.

    Raises:
        TransferError: for what are no logits, or one class.

    Example:
        >>> import torch, ttransfer as tt
        >>> [round(x, 4) for x in tt.losses.standardize(torch.tensor([[1.0, 2.0, 3.0]]))[0].tolist()]
        [-1.0, 0.0, 1.0]

    Checked against:
        The method of torchdistill's LogitStdKDLoss.

    Peers:
        torchdistill and the authors' code have a slope of 1e7 at rows of equal logits, such as those of a new head.

    References:
        Shangquan Sun, Wenqi Ren, Jingzhi Li, Rui Wang, Xiaochun Cao.
        Logit Standardization in Knowledge Distillation. 2024.
    """
    _want("standardize", logits=logits)
    return _standardized(*wide(logits)).to(logits.dtype)


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    double_backward=True,
)
def standardized_kd(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 2.0) -> Tensor:
    r"""`kd` of standardised logits.

    .. math::
        T^2 \, \frac1n \sum_i \mathrm{KL}\bigl(
        \mathrm{softmax}(\hat t_i / T) \,\|\, \mathrm{softmax}(\hat s_i / T)\bigr),
        \qquad \hat z = \frac{z - \bar z}{\sigma(z) + 10^{-7}}

    Unchanged where each row of logits is shifted and multiplied by a positive number of its own, as long as its
    deviation is far above 1e-7. The paper weighs it by 9, and the cross-entropy with the labels by 0.1.

    Args:
        student: logits (n, classes) or (n, classes, ...), of at least two classes.
        teacher: logits of the same shape; gets no gradient.
        temperature: T > 0, in units of one deviation.

    Returns:
        A scalar in nats, at least 0 (up to rounding): the mean over rows and positions.

    Raises:
        TransferError: if the shapes differ or are not those of logits, or for one class.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[70.0, 50.0, 60.0]])
        >>> round(tt.losses.standardized_kd(student, teacher).item(), 6)
        0.0

    Checked against:
        torchdistill's LogitStdKDLoss, and a loop from the paper.

    Peers:
        torchdistill's LogitStdKDLoss drops the factor T² where it is given no weight for the labels, and has a
        slope of 1e7 at rows of equal logits.

    References:
        Shangquan Sun, Wenqi Ren, Jingzhi Li, Rui Wang, Xiaochun Cao.
        Logit Standardization in Knowledge Distillation. 2024.
    """
    _want("standardized_kd", student=student, teacher=teacher)
    s, t = (_standardized(x) for x in wide(student, teacher.detach()))
    return kd(s, t, temperature=temperature).to(torch.promote_types(student.dtype, teacher.dtype))


def _want(called: str, **given: Tensor) -> None:
    want_logits(called, **given)
    for name, x in given.items():
        if x.shape[1] < 2:
            raise TransferError(f"{called}: wanted at least two classes, got {name} {shown(x)}")


def _standardized(z: Tensor) -> Tensor:
    centred = z - z.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / (z.shape[1] - 1)
    # What the mean's rounding leaves of equal logits is no deviation.
    rounding = (8 * torch.finfo(z.dtype).eps * z.detach().abs().amax(1, keepdim=True)).square()
    equal = variance.detach() <= rounding
    return torch.where(equal, 0, centred) / (root(torch.where(equal, 0, variance)) + 1e-7)
