"""Decoupled knowledge distillation: the label's class apart from the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import picked, wide, without
from ttransfer.losses._check import want_labels, want_logits


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    double_backward=True,
)
def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 8.0,
    temperature: float | Tensor = 4.0,
) -> Tensor:
    r"""Divergence for the label's class against the rest, and divergence among the rest, weighed apart.

    .. math::
        \frac{T^2}{n} \sum_i \bigl[
        \alpha \, \mathrm{KL}(b^t_i \,\|\, b^s_i) + \beta \, \mathrm{KL}(r^t_i \,\|\, r^s_i) \bigr],
        \qquad b = (p_y, 1 - p_y), \quad r = \mathrm{softmax}\bigl((z_j / T)_{j \neq y}\bigr)

    p is the softened prediction, b the label's class against all others (TCKD), r the prediction among the others
    (NCKD). `kd` is TCKD + (1 - p_y) NCKD, with the teacher's p_y: there the second part is weak where the teacher is
    sure. All is computed from logarithms, and finite whatever the logits are.

    Of two classes one is left beside the label's: its prediction is 1 on both sides, NCKD is 0, and the loss is
    α times `kd`. The authors let the loss grow over the first 20 epochs: give the term a weight that is a schedule,
    such as those of `tt.schedules`.

    Args:
        student: logits (n, classes) or (n, classes, ...), of at least two classes.
        teacher: logits of the same shape; gets no gradient.
        labels: whole numbers (n,) or (n, ...), from 0 to classes - 1.
        alpha: weight of TCKD.
        beta: weight of NCKD; on ImageNet the paper has 0.5, at a temperature of 1.
        temperature: T > 0, in units of the logits.

    Returns:
        A scalar in nats, at least 0 (up to rounding), and 0 where both predict the same: the mean over rows and
        positions.

    Raises:
        TransferError: if the shapes differ or are not those of logits, for one class, or labels that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher, labels = torch.zeros(1, 3), torch.tensor([[0.0, 2.0, 2.0]]), torch.tensor([0])
        >>> round(tt.losses.dkd(student, teacher, labels, alpha=0.0).item(), 4)  # among the others both are even
        0.0
        >>> sure = torch.tensor([[1e3, 0.0, -1e3]])
        >>> tt.losses.dkd(student, sure, labels, temperature=1.0, alpha=0.0, beta=1.0).item()  # log 2
        0.6931471824645996

    Checked against:
        A loop from the paper, `kd` by the identity above, and the formula of mdistiller where that is finite.

    Peers:
        mdistiller, MMRazor and e2eAIOK take the logarithm of a probability that may be 0, and are NaN for sure
        teachers; the label's class is left out by 1000 off its logit, which leaves it in where logits are that large.

    References:
        Borui Zhao, Quan Cui, Renjie Song, Yiyu Qiu, Jiajun Liang. Decoupled Knowledge Distillation. 2022.
    """
    want_logits("dkd", student=student, teacher=teacher)
    if student.shape[1] < 2:
        raise TransferError(f"dkd: wanted at least two classes, got student {shown(student)}")
    want_labels("dkd", student, labels)
    s, t = wide(student, teacher.detach())
    there, odds_s, rest_s = _split(s / temperature, labels)
    _, odds_t, rest_t = _split(t / temperature, labels)
    # log p_y and log (1 - p_y) are logarithms of sigmoids of the log-odds.
    tckd = odds_t.sigmoid() * (F.logsigmoid(odds_t) - F.logsigmoid(odds_s))
    tckd = tckd + (-odds_t).sigmoid() * (F.logsigmoid(-odds_t) - F.logsigmoid(-odds_s))
    nckd = (rest_t.exp() * torch.where(there, 0, rest_t - rest_s)).sum(1)
    value = (temperature**2 * (alpha * tckd + beta * nckd)).mean()
    return value.to(torch.promote_types(student.dtype, teacher.dtype))


def _split(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the label's class is, its log-odds, and the log-probabilities among the others, -inf at the label's."""
    there, others = without(z, labels)
    rest = others.log_softmax(1)
    # Any other class, such as the next one, tells the logarithm of the sum over the others: its logit less its own.
    beside = (labels + 1) % z.shape[1]
    return there, picked(z, labels) - picked(z, beside) + picked(rest, beside), rest
