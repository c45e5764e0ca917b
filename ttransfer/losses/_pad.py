"""Prime-aware adaptive distillation: a learned variance says which features can be followed."""

from __future__ import annotations

from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_alike, want_floats


@claims(coupled=False, double_backward=True)
def pad(student: Tensor, teacher: Tensor, log_variance: Tensor, *, eps: float | Tensor = 1e-6) -> Tensor:
    r"""Squared difference of features over a variance that the student learns, plus the variance's logarithm.

    .. math:: \frac{1}{nd} \sum_{i,j} \frac{(s_{ij} - t_{ij})^2}{\sigma_{ij}^2 + \varepsilon} + \log \sigma_{ij}^2

    Up to a factor and a constant the negative log-likelihood of the teacher's features. Examples that are hard to
    follow get a large variance and little weight. The branch that gives the logarithm is the caller's and learns.

    Args:
        student: features (n, ...).
        teacher: features of the same shape; get no gradient.
        log_variance: log σ², (n, d) for the d numbers of an example, or (n, 1) for one an example.
        eps: keeps a variance near 0 from making the loss infinite.

    Returns:
        A scalar of either sign, a mean over examples and numbers.

    Raises:
        TransferError: if the shapes differ or the variances do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)
        >>> tt.losses.pad(student, teacher, torch.zeros(1, 1), eps=0.0).item()  # (1 + 9) / 2 + log 1
        5.0

    Checked against:
        torchdistill's PADL2Loss, and a loop.

    Peers:
        torchdistill; its gradient is NaN where exp(log σ²) overflows, from 89 on in float32.

    References:
        Youcai Zhang, Zhonghao Lan, Yuchen Dai, Fangao Zeng, Yan Bai, Jie Chang, Yichen Wei.
        Prime-Aware Adaptive Distillation. 2020.
    """
    want_alike("pad", student=student, teacher=teacher)
    want_floats("pad", log_variance=log_variance)
    s, t, log_v = (x.flatten(1) for x in wide(student, teacher.detach(), log_variance))
    if log_v.shape[0] != s.shape[0] or log_v.shape[1] not in (1, s.shape[1]):
        raise TransferError(
            f"pad: wanted log-variances ({s.shape[0]}, {s.shape[1]}) or ({s.shape[0]}, 1) "
            f"for student {shown(student)}, got {shown(log_variance)}"
        )
    # Beyond e^80 the first term is 0 anyway, and a little further its slope would be inf / inf.
    variance = log_v.clamp_max(80).exp() + eps
    return ((s - t).square() / variance + log_v).mean().to(student.dtype)
