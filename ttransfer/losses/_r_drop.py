"""R-Drop: two passes under dropout agree."""

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
    double_backward=True,
)
def r_drop(first: Tensor, second: Tensor) -> Tensor:
    r"""Symmetric divergence of two predictions for one input.

    .. math:: \frac1{2n} \sum_i \mathrm{KL}(p_i \,\|\, q_i) + \mathrm{KL}(q_i \,\|\, p_i)

    Both get a gradient. As a term it reads ``"student(source)", "student(source)#2"``: a net with dropout draws other
    masks for its second pass. The paper trains both passes on the labels too.

    Args:
        first: logits (n, classes) or (n, classes, ...).
        second: logits of the same shape, of another pass.

    Returns:
        A scalar in nats, at least 0 (up to rounding): the mean over rows and positions.

    Raises:
        TransferError: if the shapes differ or are not those of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> first, second = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]])
        >>> round(tt.losses.r_drop(first, second).item(), 4)  # half of (0.8808 - 0.1192) / 2 * 2
        0.3808

    Checked against:
        `kd` both ways at a temperature of 1, and a loop from the paper.

    Peers:
        The authors' code sums over the batch and the positions in place of the mean.

    References:
        Xiaobo Liang, Lijun Wu, Juntao Li, Yue Wang, Qi Meng, Tao Qin, Wei Chen, Min Zhang, Tie-Yan Liu.
        R-Drop: Regularized Dropout for Neural Networks. 2021.
    """
    want_logits("r_drop", first=first, second=second)
    log_p, log_q = (x.log_softmax(1) for x in wide(first, second))
    # KL(p || q) + KL(q || p) = sum (p - q) (log p - log q).
    rows = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1)
    return (rows.mean() / 2).to(torch.promote_types(first.dtype, second.dtype))
