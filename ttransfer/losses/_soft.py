"""Plain matching of predictions: cross-entropy with a teacher's, and squared distance of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import wide
from ttransfer.losses._check import want_logits


@claims(coupled=False, non_negative=True, shift_invariant=True, class_symmetric=True, double_backward=True)
def soft_cross_entropy(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 4.0) -> Tensor:
    r"""Cross-entropy of the student's softened predictions with the teacher's.

    .. math:: -T^2 \, \frac1n \sum_{i, j} \mathrm{softmax}(t_i / T)_j \, \log \mathrm{softmax}(s_i / T)_j

    `kd` and T² times the entropy of the teacher's softened predictions, which is constant: the gradient is that of
    `kd`, and the value at the lowest is that entropy rather than 0.

    Args:
        student: logits (n, classes) or (n, classes, ...).
        teacher: logits of the same shape; gets no gradient.
        temperature: T > 0, in units of the logits.

    Returns:
        A scalar in nats, at least 0: the mean over rows and positions.

    Raises:
        TransferError: if the shapes differ or are not those of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[5.0, -2.0]])
        >>> round(tt.losses.soft_cross_entropy(student, teacher, temperature=1.0).item(), 4)  # log 2
        0.6931

    Checked against:
        `F.cross_entropy` with probabilities, `kd`, and a loop.

    Peers:
        MMRazor's KDSoftCELoss is the same. TextBrewer's kd_ce drops the factor T².

    References:
        Geoffrey Hinton, Oriol Vinyals, Jeff Dean. Distilling the Knowledge in a Neural Network. 2015.
    """
    want_logits("soft_cross_entropy", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    rows = ((t / temperature).softmax(1) * (s / temperature).log_softmax(1)).sum(1)
    return (-(temperature**2) * rows).mean().to(torch.promote_types(student.dtype, teacher.dtype))


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    class_symmetric=True,
    rotation_invariant=True,
    double_backward=True,
)
def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared difference of logits.

    .. math:: \frac{1}{nc} \sum_{i, j} (s_{ij} - t_{ij})^2

    The mean is over rows, classes and positions; the paper has half the sum over the c classes, which is c/2 times as
    much. Unlike `kd` it asks for the teacher's offset of each row too; `kd` at a high temperature is half of this
    loss without the offset.

    Args:
        student: logits (n, classes) or (n, classes, ...).
        teacher: logits of the same shape; gets no gradient.

    Returns:
        A scalar in the squared units of the logits, at least 0.

    Raises:
        TransferError: if the shapes differ or are not those of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.losses.logit_mse(torch.tensor([[1.0, 5.0]]), torch.tensor([[0.0, 2.0]])).item()  # (1 + 9) / 2
        5.0

    Checked against:
        ZhiJian's Logits, and a loop.

    Peers:
        ZhiJian's Logits and e2eAIOK's default distiller are the same, but for a teacher that gets a gradient.

    References:
        Lei Jimmy Ba, Rich Caruana. Do Deep Nets Really Need to be Deep? 2014.
    """
    want_logits("logit_mse", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    return F.mse_loss(s, t).to(torch.promote_types(student.dtype, teacher.dtype))
