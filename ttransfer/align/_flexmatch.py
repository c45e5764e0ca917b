"""A threshold for each class, the lower the less a net has learned of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer._numeric import picked, wide
from ttransfer.align._check import classes_of, in_range, items, want_logits, want_tensors, whole
from ttransfer.align._pseudo_label import want_views

__all__ = ["flexible_thresholds", "flexmatch", "remember_labels"]

Number = float | Tensor


@claims(
    coupled=False,
    non_negative=True,
    row_symmetric=True,
    double_backward=True,
    shift_invariant=True,
    detaches=("weak", "thresholds"),
)
def flexmatch(strong: Tensor, weak: Tensor, thresholds: Tensor) -> Tensor:
    r"""`fixmatch` with a threshold for each class.

    .. math::
        -\frac1n \sum_i \bigl[ q_{i \hat y_i} \geq \tau_{\hat y_i} \bigr] \log p_{i \hat y_i}, \qquad
        \hat y_i = \arg\max_c q_{ic}, \quad q_i = \mathrm{softmax}(w_i), \quad p_i = \mathrm{softmax}(s_i)

    The mean is over all rows, those below the threshold too.

    Args:
        strong: logits (n, classes) or (n, classes, ...) of the strongly augmented inputs.
        weak: logits of the same shape of the weakly augmented ones; get no gradient.
        thresholds: τ, (classes,), as from `flexible_thresholds`; get no gradient.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        TransferError: if the shapes do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> strong, weak = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # both with 0.73
        >>> round(tt.align.flexmatch(strong, weak, torch.tensor([0.7, 0.95])).item(), 4)  # log 2 / 2
        0.3466

    Checked against:
        A loop from the formula, and `fixmatch`.

    Peers:
        semilearn's FlexMatch; its masks are these.

    References:
        Bowen Zhang, Yidong Wang, Wenxin Hou, Hao Wu, Jindong Wang, Manabu Okumura, Takahiro Shinozaki.
        FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling. 2021.
    """
    want_views("flexmatch", strong, weak)
    want_tensors("flexmatch", thresholds=thresholds)
    if thresholds.shape != strong.shape[1:2] or not thresholds.is_floating_point():
        raise TransferError(
            f"flexmatch: wanted one threshold for each class, got {items(strong=strong, thresholds=thresholds)}"
        )
    s, w, limits = wide(strong, weak.detach(), thresholds.detach())
    best = w.softmax(1).max(1)
    sure = best.values >= limits[best.indices]
    return (-picked(s.log_softmax(1), best.indices) * sure).mean().to(strong.dtype)


def flexible_thresholds(labels: Tensor, *, classes: int, threshold: Number = 0.95, warm_up: bool = True) -> Tensor:
    r"""Thresholds by how many rows of the target each class has been given with certainty.

    .. math:: \tau_c = \tau \, \frac{\beta_c}{2 - \beta_c}, \qquad
        \beta_c = \frac{\sigma_c}{\max(\max_{c'} \sigma_{c'}, \; N - \sum_{c'} \sigma_{c'})}

    σ are the counts of the labels, N is their number with those that have none yet. The class with most rows has the
    whole threshold; one with none has 0, so that whatever is taken for it is learned.

    Args:
        labels: (rows,) of `remember_labels`, -1 for a row that has none yet.
        classes: how many there are.
        threshold: τ, the highest.
        warm_up: whether the rows without a label count against all classes, which keeps thresholds low at first. If
            not, the second part of the maximum is left out.

    Returns:
        (classes,), float32 at least.

    Raises:
        TransferError: for labels that are no row of whole numbers or no class, where they can be looked at.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.flexible_thresholds(torch.tensor([0, 0, 1, -1]), classes=3, threshold=0.9)  # β = 1, 1/2, 0
        tensor([0.9000, 0.3000, 0.0000])

    Checked against:
        A loop from the formula.

    Peers:
        semilearn's FlexMatch counts in Python.

    References:
        Bowen Zhang, Yidong Wang, Wenxin Hou, Hao Wu, Jindong Wang, Manabu Okumura, Takahiro Shinozaki.
        FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling. 2021.
    """
    _want_labels("flexible_thresholds", labels)
    whole("flexible_thresholds", 1, classes=classes)
    in_range("flexible_thresholds", 0.0, 1.0, closed=True, threshold=threshold)
    classes_of("flexible_thresholds", classes, least=None, labels=labels)
    dtype = threshold.dtype if isinstance(threshold, Tensor) and threshold.is_floating_point() else torch.float32
    dtype = torch.promote_types(dtype, torch.float32)
    places = torch.where(labels < 0, classes, labels).long()
    ones = torch.ones_like(places, dtype=dtype)
    counts = torch.zeros(classes + 1, dtype=dtype, device=labels.device).scatter_add(0, places, ones)
    most = (counts if warm_up else counts[:-1]).amax().clamp_min(1)
    share = counts[:-1] / most
    return threshold * share / (2 - share)


def remember_labels(labels: Tensor, weak: Tensor, index: Tensor, *, threshold: Number = 0.95) -> Tensor:
    r"""Write the labels of a batch's sure rows into those of all rows.

    .. math:: y_i' = \hat y_i \text{ if } q_{i \hat y_i} \geq \tau, \text{ else } y_i, \qquad
        \hat y_i = \arg\max_c q_{ic}, \quad q_i = \mathrm{softmax}(w_i)

    Args:
        labels: (rows,), -1 for a row that has none yet; stay as they are.
        weak: logits (n, classes); get no gradient.
        index: (n,), which rows these are, each once.
        threshold: τ, the same for all classes.

    Returns:
        The new labels, (rows,).

    Raises:
        TransferError: for shapes that do not fit, or an index beyond the rows, where it can be looked at.

    Example:
        >>> import torch, ttransfer as tt
        >>> weak = torch.tensor([[9.0, 0.0], [0.0, 0.1]])  # the first is sure
        >>> tt.align.remember_labels(torch.tensor([-1, -1, -1]), weak, torch.tensor([2, 0]))
        tensor([-1, -1,  0])

    References:
        Bowen Zhang, Yidong Wang, Wenxin Hou, Hao Wu, Jindong Wang, Manabu Okumura, Takahiro Shinozaki.
        FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling. 2021.
    """
    _want_labels("remember_labels", labels)
    want_logits("remember_labels", weak=weak)
    want_tensors("remember_labels", index=index)
    if weak.ndim != 2 or index.shape != weak.shape[:1]:
        raise TransferError(
            f"remember_labels: wanted logits (n, classes) and an index (n,), got {items(weak=weak, index=index)}"
        )
    in_range("remember_labels", 0.0, 1.0, closed=True, threshold=threshold)
    classes_of("remember_labels", labels.shape[0], index=index)
    (w,) = wide(weak.detach())
    best, at = w.softmax(1).max(1), index.long()
    new = torch.where(best.values >= threshold, best.indices.to(labels.dtype), labels.gather(0, at))
    return labels.scatter(0, at, new)


def _want_labels(called: str, labels: Tensor) -> None:
    want_tensors(called, labels=labels)
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype.is_complex or labels.shape[0] == 0:
        raise TransferError(f"{called}: wanted labels (rows,) of whole numbers, got {items(labels=labels)}")
