"""Self-ensembling for domain adaptation: consistency where the teacher is sure, and classes that stay balanced."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.align._check import in_range, want_logits

__all__ = ["self_ensembling"]

Number = float | Tensor


@claims(
    coupled=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    repeat_invariant=True,
    not_stationary="the mean prediction is to be even, whatever the teacher's is",
)
def self_ensembling(student: Tensor, teacher: Tensor, *, threshold: Number = 0.968, balance: Number = 0.005) -> Tensor:
    r"""`consistency` with a mean teacher where it is sure, and a mean prediction that is to be even over the classes.

    .. math::
        \frac{1}{nC} \sum_i g_i \, \| p_i - q_i \|^2 + \beta \, \bar g \sum_c
        \Bigl[ -\tfrac1C \log \bar p_c - \bigl(1 - \tfrac1C\bigr) \log (1 - \bar p_c) \Bigr], \qquad
        g_i = \bigl[ \max_c q_{ic} > \tau \bigr]

    p and q are the softmax of student and teacher, bars are means over rows. The second part keeps a student that
    follows its own average from putting all into one class; it weighs as much as rows are sure, and is lowest, not 0,
    where p is even. The weight of the whole in the authors' code is 3.

    Args:
        student: logits (n, classes) or (n, classes, ...).
        teacher: logits of the same shape, of the average of the student's weights; get no gradient.
        threshold: τ, the probability above which the teacher is sure.
        balance: β; 0 for classes that need not be even.

    Returns:
        A scalar without unit, at least 0: the mean over rows, classes and positions, and the balance.

    Raises:
        TransferError: if the shapes differ or are not those of logits, or for another threshold or balance.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(2, 2), torch.tensor([[40.0, 0.0], [1.0, 0.0]])  # the first is sure
        >>> tt.align.self_ensembling(student, teacher, balance=0.0).item()  # 1/4, and nothing
        0.125
        >>> round(tt.align.self_ensembling(student, teacher, balance=1.0).item(), 4)  # and half of 2 log 2
        0.8181

    Checked against:
        A loop after the authors' code.

    Peers:
        The authors' code adds 1e-6 inside the logarithms.

    References:
        Geoffrey French, Michal Mackiewicz, Mark Fisher. Self-Ensembling for Visual Domain Adaptation. 2018.
    """
    want_logits("self_ensembling", student=student, teacher=teacher)
    if student.shape != teacher.shape:
        raise TransferError(
            f"self_ensembling: wanted logits of one shape, got student {shown(student)} and teacher {shown(teacher)}"
        )
    in_range("self_ensembling", 0.0, 1.0, closed=True, threshold=threshold)
    in_range("self_ensembling", closed=True, balance=balance)
    s, t = wide(student, teacher.detach())
    log_p, q = s.log_softmax(1), t.softmax(1)
    sure = (q.amax(1) > threshold).to(s.dtype)
    same = ((log_p.exp() - q).square().mean(1) * sure).mean()
    return (same + balance * sure.mean() * _unevenness(log_p)).to(student.dtype)


def _unevenness(log_p: Tensor) -> Tensor:
    """The sum over classes of the cross-entropy of an even share with the mean probability, class or other."""
    rows = log_p.movedim(1, -1).flatten(0, -2)
    mean = rows.logsumexp(0) - math.log(rows.shape[0])
    count = mean.shape[0]
    # 1 - p of a class that all rows are sure of rounds to 0; the sum of the others does not.
    own = torch.eye(count, dtype=torch.bool, device=mean.device)
    others = torch.where(own, -torch.inf, mean).logsumexp(1)
    return -(mean / count + (1 - 1 / count) * others).sum()
