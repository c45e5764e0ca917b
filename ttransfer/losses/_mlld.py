"""Multi-level logit distillation: predictions, and their relations over the batch and over the classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_logits


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    double_backward=True,
)
def mlld(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperatures: Sequence[float] | Tensor = (2.0, 3.0, 4.0, 5.0, 6.0),
) -> Tensor:
    r"""Divergence of rows, and squared differences of the predictions' products, summed over temperatures.

    .. math::
        \sum_T \frac1n \sum_i w_i \Bigl[ T^2 \mathrm{KL}(t_i \,\|\, s_i)
        + \bigl\| (S S^\top - T T^\top)_i \bigr\|^2 \Bigr] + \frac1c \bigl\| S^\top S - T^\top T \bigr\|_F^2

    S and T are the softened predictions (n, classes), s and t their rows. The three levels are the instance's, the
    batch's and the class's; the last is of all rows. The authors have a weakly and a strongly augmented view, and
    keep of the weak one the half of the rows of which the teacher is least sure: that half is a matter of the batch,
    and is handed in as a mask. A term for each view makes their loss.

    Args:
        student: logits (n, classes).
        teacher: logits of the same shape; gets no gradient.
        mask: (n,), each row's weight at the instance's and the batch's level, such as 0 and 1; None for 1.
        temperatures: the T > 0, in units of the logits; at least one.

    Returns:
        A scalar, at least 0: a sum over temperatures. Rows of weight 0 stay in the count n.

    Raises:
        TransferError: if the shapes differ or are not (n, classes), for a mask that does not fit, or no temperature.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[1e3, -1e3]])
        >>> round(tt.losses.mlld(student, teacher, temperatures=(1.0,)).item(), 4)  # log 2 + (1 - 1/2)² + 0.75 / 2
        1.3181

    Checked against:
        A loop from the paper, and the authors' three formulas.

    Peers:
        The authors' code picks rows by a percentile on the CPU, in the middle of a step. That of logit standardisation
        takes the means first and masks after, so that its mask chooses no rows but scales the loss.

    References:
        Ying Jin, Jiaqi Wang, Dahua Lin. Multi-Level Logit Distillation. 2023.
    """
    want_logits("mlld", student=student, teacher=teacher)
    if student.ndim != 2:
        raise TransferError(f"mlld: wanted logits (n, classes), got student {shown(student)}")
    if mask is not None and mask.shape != student.shape[:1]:
        raise TransferError(f"mlld: wanted a weight for each row, got student {shown(student)}, mask {shown(mask)}")
    if len(temperatures) == 0:
        raise TransferError("mlld: wanted at least one temperature, got none")
    s, t = wide(student, teacher.detach())
    scale = torch.as_tensor(temperatures, dtype=s.dtype, device=s.device)[:, None, None]
    log_s, log_t = (s / scale).log_softmax(2), (t / scale).log_softmax(2)
    p, q = log_s.exp(), log_t.exp()
    rows = scale[..., 0] ** 2 * (q * (log_t - log_s)).sum(2)
    # A A' - B B' = (V U' + U V') / 2 for the difference U and the sum V: nothing cancels where both are alike.
    difference, both = p - q, p + q
    product = both @ difference.mT
    rows = rows + (product + product.mT).square().sum(2) / 4
    if mask is not None:
        rows = rows * mask.to(s.dtype)
    n, classes = s.shape
    return (rows.sum() / n + _classes(difference, both, product) / classes).to(
        torch.promote_types(student.dtype, teacher.dtype)
    )


def _classes(difference: Tensor, both: Tensor, product: Tensor) -> Tensor:
    """The sum of the squares of S'S - T'T, by the smaller of the matrices n x n and classes x classes."""
    if difference.shape[1] >= difference.shape[2]:
        gap = difference.mT @ both
        return (gap + gap.mT).square().sum() / 4
    squares = (difference @ difference.mT) * (both @ both.mT)
    return (squares.sum() + (product * product.mT).sum()) / 2
