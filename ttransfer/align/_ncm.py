"""Few labels: the nearest mean of a class, after features were centred and brought to one length."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer._numeric import unit, wide
from ttransfer.align._check import classes_of, row_labels, want_tensors, whole
from ttransfer.align._check import features as checked


def nearest_class_mean(features: Tensor, support: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    r"""Score rows by how near the classes' means are.

    .. math:: z_{ik} = -\| f_i - c_k \|^2, \qquad c_k = \frac{\sum_j [y_j = k] \, s_j}{\sum_j [y_j = k]}

    A head without training: SimpleShot as it is, prototypical networks where the features learn through
    `F.cross_entropy` of these scores. Gradients go to both features and support. `normalize_features` comes before.

    Args:
        features: (n, d), what is to be told.
        support: (m, d), with labels; m need not be n.
        labels: of the support, whole numbers (m,), from 0 to classes - 1; none is ignored.
        classes: how many.

    Returns:
        Logits (n, classes), in the square of the features' units; -inf for a class without support.

    Raises:
        TransferError: for shapes that do not fit, for labels that are no class, where they can be looked at.

    Example:
        >>> import torch, ttransfer as tt
        >>> support, labels = torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1])
        >>> tt.align.nearest_class_mean(torch.tensor([[2.0]]), support, labels, classes=2)
        tensor([[-1., -9.]])

    Checked against:
        scikit-learn's NearestCentroid, and a loop.

    Peers:
        The authors of SimpleShot compare by NumPy.

    References:
        Yan Wang, Wei-Lun Chao, Kilian Q. Weinberger, Laurens van der Maaten.
        SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning. 2019.
        Jake Snell, Kevin Swersky, Richard S. Zemel. Prototypical Networks for Few-shot Learning. 2017.
        Thomas Mensink, Jakob Verbeek, Florent Perronnin, Gabriela Csurka.
        Distance-Based Image Classification: Generalizing to New Classes at Near-Zero Cost. 2013.
    """
    f, s = checked("nearest_class_mean", features, support, rows=0)
    row_labels("nearest_class_mean", support, labels)
    whole("nearest_class_mean", 1, classes=classes)
    classes_of("nearest_class_mean", classes, labels=labels)
    members = (labels[:, None] == torch.arange(classes, device=labels.device)).to(s.dtype)
    counts = members.sum(0)
    means = members.mT @ s / torch.where(counts > 0, counts, 1)[:, None]
    squares = (f[:, None] - means).square().sum(2)
    return torch.where(counts > 0, -squares, -torch.inf).to(torch.promote_types(features.dtype, support.dtype))


def normalize_features(x: Tensor, centre: Tensor | None = None) -> Tensor:
    r"""Centre features and bring each row to length 1.

    .. math:: \frac{x_i - \bar x}{\| x_i - \bar x \|}

    SimpleShot's CL2N with a centre, its L2N without. The centre is the mean over the rows that the net was trained
    on, not over the few.

    Args:
        x: (n, d).
        centre: (d,), or None for 0.

    Returns:
        (n, d); a row that is the centre becomes 0.

    Raises:
        TransferError: for shapes that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> x = torch.tensor([[4.0, 5.0]])
        >>> tt.align.normalize_features(x, torch.tensor([1.0, 1.0]))
        tensor([[0.6000, 0.8000]])

    References:
        Yan Wang, Wei-Lun Chao, Kilian Q. Weinberger, Laurens van der Maaten.
        SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning. 2019.
    """
    want_tensors("normalize_features", x=x, **({} if centre is None else {"centre": centre}))
    if x.ndim != 2 or not x.is_floating_point() or (centre is not None and centre.shape != x.shape[1:]):
        got = shown(x) + (f" and centre {shown(centre)}" if centre is not None else "")
        raise TransferError(f"normalize_features: wanted features (n, d) and a centre (d,), got {got}")
    (wider,) = wide(x)
    return unit(wider if centre is None else wider - centre.to(wider.dtype)).to(x.dtype)
