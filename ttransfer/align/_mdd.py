"""Margin disparity between a classifier and one that is trained against it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer._numeric import log_other, wide
from ttransfer.align._check import in_range, items, want_logits

__all__ = ["mdd"]


@claims(
    coupled=True,  # the halves' weights do not follow their shares of the rows
    non_negative=True,
    shift_invariant=True,
    row_symmetric=True,
    repeat_invariant=True,
    double_backward=True,
)
def mdd(
    source_logits: Tensor,
    target_logits: Tensor,
    source_adversary: Tensor,
    target_adversary: Tensor,
    *,
    gamma: float | Tensor = 4.0,
) -> Tensor:
    r"""Margin disparity discrepancy, negated: what its auxiliary classifier minimises.

    .. math:: -\frac{\gamma}{n} \sum_i \log p_{i \hat y_i} - \frac1m \sum_j \log (1 - q_{j \hat y_j}),
        \qquad p = \mathrm{softmax}(a^s), \quad q = \mathrm{softmax}(a^t)

    ŷ are the classes that the classifier itself predicts. The auxiliary one learns to agree with it on source
    rows and to disagree on target rows; the features maximise this when `gradient_reversal` stands before the auxiliary
    classifier. The classifier's logits get no gradient.

    Args:
        source_logits: of the classifier, (n, classes) or maps (n, classes, ...).
        target_logits: likewise for m rows.
        source_adversary: of the auxiliary classifier, of the same shape as `source_logits`.
        target_adversary: of the same shape as `target_logits`.
        gamma: the weight of the source, the exponential of the margin ρ. The paper has 2, 3 and 4.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        TransferError: for other shapes, or fewer than two classes.

    Example:
        >>> import torch, ttransfer as tt
        >>> logits, even = torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2)
        >>> round(tt.align.mdd(logits, logits, even, even).item(), 4)  # 5 log 2
        3.4657

    Checked against:
        A loop; skada's MDDLoss of one target row, without its smoothing.

    Peers:
        TLlib has it with 1e-6 added to 1 - p: there is next to no gradient where the auxiliary classifier agrees by a
        margin above 14. skada takes in each row the probabilities of all rows' classes, so that its target part may
        be half of what it should be where the two classifiers agree; it smooths by 0.1.

    References:
        Yuchen Zhang, Tianle Liu, Mingsheng Long, Michael I. Jordan.
        Bridging Theory and Algorithm for Domain Adaptation. 2019.
    """
    given = {
        "source_logits": source_logits,
        "target_logits": target_logits,
        "source_adversary": source_adversary,
        "target_adversary": target_adversary,
    }
    want_logits("mdd", **given)
    if source_logits.shape != source_adversary.shape or target_logits.shape != target_adversary.shape:
        raise TransferError(f"mdd: wanted both classifiers' logits of one shape in each domain, got {items(**given)}")
    in_range("mdd", closed=True, gamma=gamma)
    s, t = wide(source_adversary, target_adversary)
    agree = s.log_softmax(1).gather(1, source_logits.argmax(1, keepdim=True))
    value = -gamma * agree.mean() - log_other(t, target_logits.argmax(1)).mean()
    return value.to(functools.reduce(torch.promote_types, (x.dtype for x in given.values())))
