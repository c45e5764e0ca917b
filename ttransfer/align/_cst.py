"""Cycle self-training: what is learned from the target's pseudo-labels must hold for the source."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import unit
from ttransfer.align._check import classes_of, features, in_range, row_labels, same_rows, want_logits


@claims(coupled=True, non_negative=True, scale_invariant=True, detaches=("target_logits",))
def cst(
    source: Tensor, target: Tensor, labels: Tensor, target_logits: Tensor, *, ridge: float | Tensor = 1e-3
) -> Tensor:
    r"""Error on the source of the classifier that fits the target's pseudo-labels: the reverse step, in closed form.

    .. math::
        \frac{1}{nC} \bigl\| \hat S \hat T^\top (\hat T \hat T^\top + \lambda I)^{-1} \hat Y_t - \hat Y_s \bigr\|_F^2

    Rows of S and T are features with length 1; rows of Y are one-hot labels less 1/C, the target's those that its
    logits find likeliest. The classifier is the ridge regression of the pseudo-labels, so that its gradient with
    respect to both domains' features is there without an inner loop. The paper trains that classifier by any loss;
    this is what its code has.

    Args:
        source: features (n, d).
        target: features (m, d).
        labels: of the source, (n,), from 0 to C - 1; none is ignored.
        target_logits: (m, C); get no gradient. Of the whole net, whose head the source trains.
        ridge: λ > 0.

    Returns:
        A scalar without unit, at least 0: the mean over rows and classes.

    Raises:
        TransferError: for shapes that do not fit, for labels that are no class, where they can be looked at.

    Example:
        >>> import torch, ttransfer as tt
        >>> source, labels = torch.eye(2), torch.tensor([0, 1])
        >>> value = tt.align.cst(source, torch.eye(2), labels, torch.eye(2), ridge=1.0)
        >>> value.item()  # half the labels of ±1/2, so that each entry is off by 1/4
        0.0625

    Checked against:
        scikit-learn's formula by NumPy, as a regression in the features (the primal form).

    Peers:
        No package. The authors' code inverts the matrix, and clamps its cosines to ±0.99999999, at which their
        gradient ends.

    References:
        Hong Liu, Jianmin Wang, Mingsheng Long. Cycle Self-Training for Domain Adaptation. 2021.
    """
    s, t = features("cst", source, target, rows=1)
    want_logits("cst", target_logits=target_logits)
    same_rows("cst", target=target, target_logits=target_logits)
    row_labels("cst", source, labels)
    in_range("cst", ridge=ridge)
    classes_of("cst", target_logits.shape[1], labels=labels)
    # In float64, where there is one: the ridge is small beside the squares of a batch that has collapsed.
    precise = s.dtype if s.device.type == "mps" else torch.float64
    s, t = unit(s.to(precise)), unit(t.to(precise))
    count = target_logits.shape[1]
    classes = torch.arange(count, device=s.device)
    fitted = (target_logits.detach().argmax(1)[:, None] == classes).to(precise) - 1 / count
    wanted = (labels[:, None] == classes).to(precise) - 1 / count
    gram = t @ t.mT + ridge * torch.eye(t.shape[0], dtype=precise, device=t.device)
    found = s @ t.mT @ torch.linalg.solve(gram, fitted)
    return (found - wanted).square().mean().to(torch.promote_types(source.dtype, target.dtype))
