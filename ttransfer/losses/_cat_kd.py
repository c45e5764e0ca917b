"""Class attention transfer: where in the image each class is seen."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import unit, wide
from ttransfer.losses._check import want_maps


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    scale_invariant=True,
    class_symmetric=True,
    double_backward=True,
)
def cat_kd(student: Tensor, teacher: Tensor, *, resolution: int = 2) -> Tensor:
    r"""Mean squared difference of the normalised class activation maps, after they were pooled.

    .. math::
        \frac{1}{n c r^2} \sum_{i,c} \Bigl\| \frac{P(S_{ic})}{\|P(S_{ic})\|} - \frac{P(T_{ic})}{\|P(T_{ic})\|} \Bigr\|^2

    A class activation map is the last convolution's output where the classifier is a 1x1 convolution before the
    pooling, so that its mean over positions is the logit. P pools it to r x r by averages: fine detail is not
    compared. The paper weighs it by 400.

    Args:
        student: class activation maps (n, classes, height, width).
        teacher: class activation maps (n, classes, ...), of any height and width; get no gradient.
        resolution: r.

    Returns:
        A scalar without units, from 0 to 4 / r²: a mean over examples, classes and pooled positions.

    Raises:
        TransferError: for what are no maps of the same rows and classes.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]]), torch.tensor([[[[0.0, 0.0], [0.0, 5.0]]]])
        >>> tt.losses.cat_kd(student, teacher).item()  # |e1 - e4|² / 4
        0.5

    Checked against:
        A loop with torch's own pooling.

    Peers:
        The authors' code, a fork of mdistiller, whose value this is.

    References:
        Ziyao Guo, Haonan Yan, Hui Li, Xiaodong Lin.
        Class Attention Transfer Based Knowledge Distillation. 2023.
    """
    want_maps("cat_kd", space=False, student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    s, t = (unit(F.adaptive_avg_pool2d(x, (resolution, resolution)), (2, 3)) for x in (s, t))
    return F.mse_loss(s, t).to(student.dtype)
