"""Features of vision transformers: shallow layers are mimicked, the deepest is generated."""

from __future__ import annotations

from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_alike


@claims(coupled=False, zero_at_equality=True, non_negative=True, symmetric=True, double_backward=True)
def vitkd(
    student: Tensor,
    teacher: Tensor,
    student_deep: Tensor,
    teacher_deep: Tensor,
    mask: Tensor,
    *,
    alpha: float | Tensor = 3e-5,
    beta: float | Tensor = 3e-6,
    ratio: float | Tensor = 0.5,
) -> Tensor:
    r"""Squared distances of shallow tokens, and of those deep tokens that had to be generated.

    .. math::
        \frac{\alpha}{n} \| S - T \|^2
        + \frac{\beta}{\lambda n} \sum_i \sum_{p} m_{ip} \, \| S'_{ip} - T'_{ip} \|^2

    S' is what a generator, two 3x3 convolutions with a ReLU between them, makes of the student's deepest tokens
    after those with m = 1 were replaced by a learned token. Aligning widths and generating are the caller's
    adapters; the mask is drawn anew for each batch.

    Args:
        student: shallow tokens, aligned, (n, ..., d): the paper takes the first two layers, (n, 2, tokens, d).
        teacher: shallow tokens of the same shape; get no gradient.
        student_deep: tokens of the last layer as generated, (n, tokens, d).
        teacher_deep: tokens of the last layer, of the same shape; get no gradient.
        mask: (n, tokens), 1 or True where a token was hidden from the generator.
        alpha: the weight of the shallow layers.
        beta: the weight of the deep layer.
        ratio: λ, the share of tokens that are hidden.

    Returns:
        A scalar in the squared units of the features, at least 0: sums over tokens and widths, as in the
        authors' code, which is what makes the weights so small; a mean over examples.

    Raises:
        TransferError: for shapes that differ, or a mask that does not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> low, deep, mask = torch.ones(1, 2, 4), torch.ones(1, 2, 4), torch.tensor([[True, False]])
        >>> tt.losses.vitkd(low, 0 * low, deep, 0 * deep, mask, alpha=1.0, beta=1.0).item()  # 8 + 4 / 0.5
        16.0

    Checked against:
        A loop from the authors' formula.

    Peers:
        cls_KD, the authors' code, which draws the mask and holds the generator itself.

    References:
        Zhendong Yang, Zhe Li, Ailing Zeng, Zexian Li, Chun Yuan, Yu Li.
        ViTKD: Practical Guidelines for ViT feature knowledge distillation. 2022.
    """
    want_alike("vitkd", student=student, teacher=teacher)
    want_alike("vitkd", rank=3, student_deep=student_deep, teacher_deep=teacher_deep)
    if mask.shape != student_deep.shape[:2] or student.shape[0] != student_deep.shape[0]:
        raise TransferError(
            f"vitkd: wanted deep tokens (n, tokens, d) and a mask (n, tokens), "
            f"got student {shown(student)}, student_deep {shown(student_deep)} and mask {shown(mask)}"
        )
    s, t, s_deep, t_deep = wide(student, teacher.detach(), student_deep, teacher_deep.detach())
    mimicked = (s - t).square().flatten(1).sum(1)
    generated = ((s_deep - t_deep).square() * mask.to(s.dtype)[..., None]).flatten(1).sum(1)
    return (alpha * mimicked + beta / ratio * generated).mean().to(student.dtype)
