"""The nearest of the target's own class centres as a classifier that never saw the source."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer._numeric import picked, unit, wide
from ttransfer.align._check import in_range, items, same_rows, want_logits, want_tensors

__all__ = ["atdoc_nc", "remember_centres"]


@claims(
    coupled=False,
    non_negative=True,
    shift_invariant=True,
    double_backward=True,
    detaches=("features", "centres"),
)
def atdoc_nc(logits: Tensor, features: Tensor, centres: Tensor) -> Tensor:
    r"""Cross-entropy with the class whose centre in the target is nearest: ATDOC by nearest centroids.

    .. math:: -\frac1n \sum_i \log \mathrm{softmax}(z_i)_{\hat y_i}, \qquad
        \hat y_i = \arg\max_c \frac{f_i \cdot m_c}{\|f_i\| \, \|m_c\|}

    All rows count alike, however near their centre is; `atdoc` weighs its rows by how clear their vote is.

    Args:
        logits: (n, classes) of target rows.
        features: (n, d) of the same rows; get no gradient.
        centres: m, (classes, d) from `remember_centres`; get no gradient. No row is nearest to a centre of zeros,
            unless there is no other.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        TransferError: if the shapes do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> logits, centres = torch.tensor([[2.0, 0.0]]), torch.tensor([[9.0, 0.0], [0.0, 0.1]])
        >>> round(tt.align.atdoc_nc(logits, torch.tensor([[1.0, 2.0]]), centres).item(), 4)  # 2 + log(1 + exp(-2))
        2.1269

    Checked against:
        A loop from the formula.

    Peers:
        The authors' code; pytorch-adapt has the neighbours of `atdoc` alone.

    References:
        Jian Liang, Dapeng Hu, Jiashi Feng. Domain Adaptation with Auxiliary Target Domain-Oriented Classifier. 2021.
    """
    _fitting("atdoc_nc", logits, features, centres)
    z, f, m = wide(logits, features.detach(), centres.detach())
    cosines = unit(f) @ unit(m).mT
    # What is left of a class that has long not come is rounding.
    gone = m.abs().amax(1) < torch.finfo(m.dtype).tiny
    cosines = torch.where(gone, -2.0, cosines)  # below any cosine
    best = cosines.max(1)
    # Of what is no number some class is the nearest, too; it must not pass for sure.
    unknown = best.values * 0
    return (unknown - picked(z.log_softmax(1), best.indices)).mean().to(logits.dtype)


def remember_centres(centres: Tensor, features: Tensor, logits: Tensor, *, momentum: float | Tensor = 0.1) -> Tensor:
    r"""Move the centres of classes towards the means of a batch's rows.

    .. math:: m_c' = (1 - \mu) \, m_c + \mu \, \frac{\sum_i [\hat y_i = c] f_i}{\sum_i [\hat y_i = c]}, \qquad
        \hat y_i = \arg\max_c z_{ic}

    Where a class has no row in the batch the mean is 0, as in the authors' code: its centre becomes shorter, not
    another, so that its next rows count for more. After some 800 such batches in float32 it is gone, and no row is
    nearest to it. In the authors' code its length rounds to 0 after some 500, and every row is taken for that class.

    Args:
        centres: m, (classes, d); stay as they are.
        features: (n, d) of target rows, not normalised; get no gradient.
        logits: (n, classes); get no gradient.
        momentum: μ, from 0 (nothing moves) to 1 (this batch alone).

    Returns:
        The new centres, (classes, d), in the features' units.

    Raises:
        TransferError: if the shapes do not fit, or for another momentum.

    Example:
        >>> import torch, ttransfer as tt
        >>> features, logits = torch.tensor([[1.0, 1.0], [3.0, 1.0]]), torch.tensor([[5.0, 0.0], [5.0, 0.0]])
        >>> tt.align.remember_centres(torch.eye(2), features, logits, momentum=0.5)
        tensor([[1.5000, 0.5000],
                [0.0000, 0.5000]])

    Checked against:
        A loop after the authors' code.

    References:
        Jian Liang, Dapeng Hu, Jiashi Feng. Domain Adaptation with Auxiliary Target Domain-Oriented Classifier. 2021.
    """
    _fitting("remember_centres", logits, features, centres)
    in_range("remember_centres", 0.0, 1.0, closed=True, momentum=momentum)
    f, m = wide(features.detach(), centres.detach())
    classes = torch.arange(logits.shape[1], device=logits.device)
    members = (logits.detach().argmax(1)[:, None] == classes).to(f.dtype)
    means = members.mT @ f / members.sum(0).clamp_min(1)[:, None]
    return ((1 - momentum) * m + momentum * means).to(centres.dtype)


def _fitting(called: str, logits: Tensor, features: Tensor, centres: Tensor) -> None:
    want_logits(called, logits=logits)
    want_tensors(called, features=features, centres=centres)
    floating = features.is_floating_point() and centres.is_floating_point()
    fits = logits.ndim == features.ndim == centres.ndim == 2 and floating
    if not fits or centres.shape != (logits.shape[1], features.shape[1]):
        raise TransferError(
            f"{called}: wanted logits (n, classes), features (n, d) and centres (classes, d), got "
            + items(logits=logits, features=features, centres=centres)
        )
    same_rows(called, logits=logits, features=features)
