"""Pseudo-labels by centroids of the target's own features: source-free adaptation."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer._numeric import unit, wide
from ttransfer.align._check import want_tensors, whole


def shot_labels(features: Tensor, probabilities: Tensor, *, rounds: int = 1, variant: str = "paper") -> Tensor:
    r"""Label rows by the nearest of their classes' centroids, by cosine.

    .. math::
        c_k^{(0)} = \frac{\sum_i p_{ik} f_i}{\sum_i p_{ik}}, \quad
        \hat y_i = \arg\max_k \cos(f_i, c_k), \quad
        c_k^{(1)} = \frac{\sum_i [\hat y_i = k] f_i}{\sum_i [\hat y_i = k]}, \quad
        \hat y_i = \arg\max_k \cos(f_i, c_k^{(1)})

    Centroids by prediction first, then ``rounds`` times by label. Meant for all rows of the target at once, between
    epochs; the labels then are a field of the batch, and the loss is `torch.nn.functional.cross_entropy` on them with
    a weight of 0.3, beside `infomax`.

    Args:
        features: (n, d).
        probabilities: (n, classes), rows that sum to 1.
        rounds: of centroids by label; 0 leaves those by prediction.
        variant: "paper", or "code" for the authors' code, in which each row of features has a 1 appended and then
            the length 1 before any mean is taken, and in which only classes count that are some row's likeliest.
            In both, a class that no row has is no candidate in the next round.

    Returns:
        Labels (n,), int64, without gradient.

    Raises:
        TransferError: for shapes that do not fit, or another variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> features = torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]])
        >>> probabilities = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.1, 0.9]])  # the first row's is wrong
        >>> tt.align.shot_labels(features, probabilities)
        tensor([0, 0, 1])

    Checked against:
        SciPy's cosine distances in a loop from the paper, and one from the authors' code.

    Peers:
        pytorch-adapt and skada have none. The authors' code compares by SciPy, on which a class that loses all rows
        in the second round wins every row, since the cosine distance of zeros is NaN.

    References:
        Jian Liang, Dapeng Hu, Jiashi Feng. Do We Really Need to Access the Source Data? Source Hypothesis Transfer for
        Unsupervised Domain Adaptation. 2020.
    """
    if variant not in ("paper", "code"):
        raise TransferError(f"shot_labels: wanted variant 'paper' or 'code', got {variant!r}")
    want_tensors("shot_labels", features=features, probabilities=probabilities)
    whole("shot_labels", 0, rounds=rounds)
    if features.ndim != 2 or probabilities.ndim != 2 or features.shape[0] != probabilities.shape[0]:
        raise TransferError(
            "shot_labels: wanted features (n, d) and probabilities (n, classes) of the same rows, "
            f"got features {shown(features)} and probabilities {shown(probabilities)}"
        )
    f, p = wide(features.detach(), probabilities.detach())
    classes = torch.arange(p.shape[1], device=p.device)
    candidates = p.sum(0) > 0
    if variant == "code":
        f = unit(torch.cat([f, torch.ones_like(f[:, :1])], 1))
        candidates = (p.argmax(1)[:, None] == classes).any(0)
    rows = unit(f)
    labels = _nearest(rows, p.mT @ f, candidates)
    for _ in range(rounds):
        members = labels[:, None] == classes
        labels = _nearest(rows, members.to(f.dtype).mT @ f, candidates & members.any(0))
    return labels


def _nearest(rows: Tensor, centroids: Tensor, candidates: Tensor) -> Tensor:
    # A cosine does not see by what a centroid is divided.
    return torch.where(candidates, rows @ unit(centroids).mT, -torch.inf).argmax(1)
