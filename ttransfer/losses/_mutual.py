"""Deep mutual learning: two students teach each other."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import wide
from ttransfer.losses._check import want_logits


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    shift_invariant=True,
    class_symmetric=True,
    row_symmetric=True,
)
def mutual(first: Tensor, second: Tensor, *, temperature: float | Tensor = 1.0) -> Tensor:
    r"""Divergence of each of two students from the other, who is held constant.

    .. math::
        \frac{T^2}{n} \sum_i \mathrm{KL}(\underline{q_i} \,\|\, p_i) + \mathrm{KL}(\underline{p_i} \,\|\, q_i),
        \qquad p, q = \mathrm{softmax}(\cdot / T)

    What is underlined gets no gradient: the first student's gradient is that of `kd` with the second for a teacher,
    and the other way round. So the gradient is not that of the value, in which both sides move; `r_drop` has that.
    One direction alone is `kd` at a temperature of 1. A cohort of K has a term for each pair, weighed 1/(K - 1).

    Args:
        first: logits (n, classes) or (n, classes, ...) of one student.
        second: logits of the same shape, of the other.
        temperature: T > 0, in units of the logits.

    Returns:
        A scalar in nats, at least 0 (up to rounding): the mean over rows and positions, the sum over directions.

    Raises:
        TransferError: if the shapes differ or are not those of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> first, second = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]])
        >>> round(tt.losses.mutual(first, second).item(), 4)  # (0.8808 - 0.1192) / 2 * 2
        0.7616

    Checked against:
        `kd` both ways, ZhiJian's DML, and a loop from the paper.

    Peers:
        ZhiJian's DML is one direction, and leaves it to the caller to hold the other student constant.

    References:
        Ying Zhang, Tao Xiang, Timothy M. Hospedales, Huchuan Lu. Deep Mutual Learning. 2018.
    """
    want_logits("mutual", first=first, second=second)
    log_p, log_q = ((x / temperature).log_softmax(1) for x in wide(first, second))
    fixed_p, fixed_q = log_p.detach(), log_q.detach()
    rows = (fixed_q.exp() * (fixed_q - log_p) + fixed_p.exp() * (fixed_p - log_q)).sum(1)
    return (temperature**2 * rows).mean().to(torch.promote_types(first.dtype, second.dtype))
