"""Streamlined knowledge distillation: predictions one by one, and the directions between them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import divergence, finite, root, unit, wide
from ttransfer.losses._check import want_logits, want_variant

Variant = Literal["paper", "code"]


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    repeat_invariant=True,
    double_backward=True,
)
def skd_instance(
    student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 4.0, variant: Variant = "paper"
) -> Tensor:
    r"""Divergence of the student's softened predictions from the teacher's.

    .. math:: \frac1n \sum_i \mathrm{KL}\bigl(\mathrm{softmax}(t_i / \tau) \,\|\, \mathrm{softmax}(s_i / \tau)\bigr)

    In words, `variant="code"` differs so: a factor τ², and rows where the teacher is surer than in the batch's
    median count 0, though they stay in the mean's count.

    Args:
        student: logits (n, classes).
        teacher: logits of the same shape; get no gradient.
        temperature: τ > 0, in units of the logits.
        variant: "paper", or "code" as the authors'.

    Returns:
        A scalar in nats, at least 0. "paper" is a mean over rows that does not couple them; "code" couples.

    Raises:
        TransferError: if the shapes differ or are not (n, classes), or for an unknown variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> round(tt.losses.skd_instance(student, teacher, temperature=2.0).item(), 4)
        0.1109
        >>> round(tt.losses.skd_instance(student, teacher, temperature=2.0, variant="code").item(), 4)
        0.4438

    Checked against:
        torchdistill's SKDInstanceLoss in both modes, and loops.

    Peers:
        torchdistill; its "code" mode takes no bfloat16.

    References:
        Hyeon-Jin Jeong, Han-Jin Lee, Seok-Hwan Choi. Streamlined Knowledge Distillation. 2026.
    """
    _want("skd_instance", student, teacher, variant)
    s, t = wide(student, teacher.detach())
    rows = divergence(s / temperature, t / temperature)
    if variant == "code":
        rows = temperature**2 * rows * _lower_half(t.softmax(1).amax(1))
    return rows.mean().to(student.dtype)


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    class_symmetric=True,
    scale_invariant=True,
)
def skd_direction(
    student: Tensor, teacher: Tensor, *, tikhonov: float | Tensor = 0.1, variant: Variant = "paper"
) -> Tensor:
    r"""Mahalanobis distance between the two nets' tables of cosines between examples.

    .. math::
        \frac1n \sum_i \sqrt{D_i^\top (\Sigma + \lambda I)^{-1} D_i}, \qquad
        D = \hat S \hat S^\top - \hat T \hat T^\top, \quad \Sigma = \mathrm{cov}(D)

    Ŝ and T̂ are the logits with rows of length 1; the covariance is over the rows of D, divided by n - 1.

    In words, `variant="code"` differs so: both tables are divided by the number of classes, and the value is
    multiplied by the share of classes whose probability by the teacher, summed over the batch, is not above the
    median: about a half.

    Args:
        student: logits (n, classes).
        teacher: logits of the same shape; get no gradient.
        tikhonov: λ > 0, added to the covariance's diagonal.
        variant: "paper", or "code" as the authors'.

    Returns:
        A scalar without units, at least 0, a mean over rows; 0, up to rounding, for one row.

    Raises:
        TransferError: if the shapes differ or are not (n, classes), or for an unknown variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> round(tt.losses.skd_direction(student, teacher, tikhonov=1.0).item(), 4)  # √0.75
        0.866

    Checked against:
        torchdistill's SKDDirectionLoss in both modes, and a loop with NumPy's covariance and inverse.

    Peers:
        torchdistill; its gradient is NaN where both sides are equal, and for one row it raises.

    References:
        Hyeon-Jin Jeong, Han-Jin Lee, Seok-Hwan Choi. Streamlined Knowledge Distillation. 2026.
    """
    _want("skd_direction", student, teacher, variant)
    s, t = wide(student, teacher.detach())
    unit_s, unit_t = unit(s), unit(t)
    gap = unit_s @ unit_s.mT - unit_t @ unit_t.mT
    n, classes = s.shape
    gap = gap / classes if variant == "code" else gap
    centred = gap - gap.mean(0)
    eye = torch.eye(n, dtype=gap.dtype, device=gap.device)
    covariance = finite(centred.mT @ centred / max(n - 1, 1))[0] + tikhonov * eye
    # With Σ = LLᵀ the form is |L⁻¹D|²: no inverse, and never negative.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), gap, upper=False)
    value = root(whitened.square().sum(0)).mean()
    if variant == "code":
        value = value * _lower_half(t.softmax(1).sum(0)).to(value.dtype).mean()
    return value.to(student.dtype)


def _want(called: str, student: Tensor, teacher: Tensor, variant: str) -> None:
    want_variant(called, variant)
    want_logits(called, student=student, teacher=teacher)
    if student.ndim != 2:
        raise TransferError(f"{called}: wanted logits (n, classes), got student {shown(student)}")


def _lower_half(x: Tensor) -> Tensor:
    """Whether each number is at most the median, that of an even count being the mean of the two in the middle."""
    ordered, n = x.sort().values, x.shape[0]
    return x <= (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
