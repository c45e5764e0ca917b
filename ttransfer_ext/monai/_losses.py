"""Dice and cross-entropy, with deep supervision.

MONAI's modules read their axes off a tensor, which `torch.compile` takes for data; its arithmetic,
`monai.losses.utils.compute_tp_fp_fn`, is used here as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_labels, want_logits

__all__ = ["batch_dice", "dice", "dice_ce"]

Outputs = Tensor | Sequence[Tensor]


def _images(outputs: Any, *_: Any) -> int:
    return outputs.shape[0] if isinstance(outputs, Tensor) else outputs[0].shape[0]


@claims(coupled=False, count=_images, non_negative=True, shift_invariant=True)
def dice(outputs: Outputs, labels: Tensor, *, include_background: bool = True, smooth: float | Tensor = 1e-5) -> Tensor:
    r"""One minus the overlap of predicted and true regions, for each image and class.

    .. math::
        \sum_l w_l \, \frac{1}{nC} \sum_{i,c} 1 - \frac{2 \sum_p p_{icp} y_{icp} + \epsilon}
        {\sum_p p_{icp} + \sum_p y_{icp} + \epsilon}, \qquad w_l = \max(2^{-l}, 1/16)

    p is the softmax over classes and y is 1 for the label. l are the levels of deep supervision, the finest first,
    for which labels are taken down by nearest neighbours.

    Args:
        outputs: logits (n, classes, ...) of two or three axes of space; or one for each level, the finest first.
        labels: (n, ...) of whole numbers from 0, in the size of the finest level or any other.
        include_background: whether class 0 is one of the C.
        smooth: ε > 0; it makes a class 0 that is neither there nor predicted.

    Returns:
        A scalar, at least 0; for one level at most 1.

    Raises:
        TransferError: for what are no logits of two classes, or labels of other rows.

    Example:
        >>> import torch
        >>> from ttransfer_ext.monai import dice
        >>> labels = torch.tensor([[[0, 1], [1, 0]]])
        >>> logits = torch.zeros(1, 2, 2, 2)  # half of each: 1 - 2 * 1 / (2 + 2)
        >>> round(dice(logits, labels).item(), 4), round(dice([logits, logits], labels).item(), 4)
        (0.5, 0.75)

    Checked against:
        MONAI's DiceLoss(softmax=True, to_onehot_y=True) in its DeepSupervisionLoss, and a loop.

    Peers:
        MONAI's module makes one graph only where its axes are known beforehand.

    References:
        Fausto Milletari, Nassir Navab, Seyed-Ahmad Ahmadi.
        V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation. 2016.
    """
    return _levels("dice", outputs, labels, lambda x, y: _dice(x, y, include_background, smooth, batch=False))


@claims(coupled=True, non_negative=True, shift_invariant=True, row_symmetric=True, repeat_invariant=None)
def batch_dice(
    outputs: Outputs, labels: Tensor, *, include_background: bool = True, smooth: float | Tensor = 1e-5
) -> Tensor:
    r"""One minus the overlap of predicted and true regions, for each class over the images of a batch together.

    .. math::
        \sum_l w_l \, \frac1C \sum_c 1 - \frac{2 \sum_{i,p} p_{icp} y_{icp} + \epsilon}
        {\sum_{i,p} p_{icp} + \sum_{i,p} y_{icp} + \epsilon}, \qquad w_l = \max(2^{-l}, 1/16)

    A class that is in few images of a batch does not make the others' overlap 0, as it does in `dice`.

    Args:
        outputs: as for `dice`.
        labels: as for `dice`.
        include_background: as for `dice`.
        smooth: as for `dice`.

    Returns:
        A scalar, at least 0; for one level at most 1.

    Raises:
        TransferError: as for `dice`.

    Example:
        >>> import torch
        >>> from ttransfer_ext.monai import batch_dice
        >>> labels = torch.tensor([[[0, 0]], [[1, 1]]])
        >>> round(batch_dice(torch.zeros(2, 2, 1, 2), labels).item(), 4)
        0.5

    Checked against:
        MONAI's DiceLoss(softmax=True, to_onehot_y=True, batch=True), and a loop.

    Peers:
        MONAI and nnU-Net have it, the latter as its default for 2D nets.

    References:
        Fausto Milletari, Nassir Navab, Seyed-Ahmad Ahmadi.
        V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation. 2016.
    """
    return _levels("batch_dice", outputs, labels, lambda x, y: _dice(x, y, include_background, smooth, batch=True))


@claims(coupled=False, count=_images, non_negative=True, shift_invariant=True)
def dice_ce(
    outputs: Outputs,
    labels: Tensor,
    *,
    include_background: bool = True,
    smooth: float | Tensor = 1e-5,
    lambda_dice: float | Tensor = 1.0,
    lambda_ce: float | Tensor = 1.0,
) -> Tensor:
    r"""`dice` and cross-entropy together.

    .. math:: \sum_l w_l \, (\lambda_d D_l + \lambda_c H_l), \qquad w_l = \max(2^{-l}, 1/16)

    D is that of `dice`, H the mean cross-entropy over positions, the background's always among them.

    Args:
        outputs: as for `dice`.
        labels: as for `dice`.
        include_background: as for `dice`.
        smooth: as for `dice`.
        lambda_dice: the weight of D.
        lambda_ce: the weight of H.

    Returns:
        A scalar, at least 0.

    Raises:
        TransferError: as for `dice`.

    Example:
        >>> import torch
        >>> from ttransfer_ext.monai import dice_ce
        >>> labels = torch.tensor([[[0, 1], [1, 0]]])
        >>> round(dice_ce(torch.zeros(1, 2, 2, 2), labels).item(), 4)  # 1 / 2 + log 2
        1.1931

    Checked against:
        MONAI's DiceCELoss(softmax=True, to_onehot_y=True) in its DeepSupervisionLoss, and a loop.

    Peers:
        MONAI's module makes one graph only where its axes are known beforehand.

    References:
        Fabian Isensee, Paul F. Jaeger, Simon A. A. Kohl, Jens Petersen, Klaus H. Maier-Hein.
        nnU-Net: A Self-Configuring Method for Deep Learning-Based Biomedical Image Segmentation. 2021.
    """

    def both(x: Tensor, y: Tensor) -> Tensor:
        return lambda_dice * _dice(x, y, include_background, smooth, batch=False) + lambda_ce * F.cross_entropy(x, y)

    return _levels("dice_ce", outputs, labels, both)


def _levels(called: str, outputs: Outputs, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum a loss over the levels of deep supervision."""
    levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if not levels:
        raise TransferError(f"{called}: wanted logits, or a list of them, got an empty list")
    total = torch.zeros((), device=levels[0].device)
    for level, logits in enumerate(levels):
        want_logits(called, outputs=logits)
        if logits.ndim not in (4, 5) or logits.shape[1] < 2:
            raise TransferError(
                f"{called}: wanted logits of two classes or more, and of two or three axes of space, "
                f"got {shown(logits)}"
            )
        if labels.ndim != logits.ndim - 1:
            raise TransferError(f"{called}: wanted labels (n, ...), got {shown(labels)} for logits {shown(logits)}")
        y = _resized(labels, logits.shape[2:])
        want_labels(called, logits, y)
        total = total + max(0.5**level, 0.0625) * loss(wide(logits)[0], y)
    return total.to(levels[0].dtype)


def _dice(logits: Tensor, labels: Tensor, include_background: bool, smooth: float | Tensor, *, batch: bool) -> Tensor:
    from monai.losses.utils import compute_tp_fp_fn

    classes = torch.arange(logits.shape[1], device=logits.device).view(-1, *[1] * (logits.ndim - 2))
    p, y = logits.softmax(1), (labels[:, None] == classes).to(logits.dtype)
    if not include_background:
        p, y = p[:, 1:], y[:, 1:]
    axes = [*([0] if batch else []), *range(2, logits.ndim)]
    both, only_p, only_y = compute_tp_fp_fn(p, y, axes, 1, False)
    return (1 - (2 * both + smooth) / (2 * both + only_p + only_y + smooth)).mean()


def _resized(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest neighbours, pixel centre to pixel centre, as `interpolate` does in mode "nearest-exact"."""
    for axis, to in enumerate(size, start=1):
        have = labels.shape[axis]
        if have != to:
            near = (torch.arange(to, device=labels.device) * 2 + 1) * have // (2 * to)
            labels = labels.index_select(axis, near)
    return labels
