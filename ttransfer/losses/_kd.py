"""Knowledge distillation: softened predictions of a teacher."""

from __future__ import annotations

from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import divergence
from ttransfer.losses._check import want_logits


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    double_backward=True,
)
def kd(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 4.0) -> Tensor:
    r"""Divergence of the student's softened predictions from the teacher's.

    .. math:: T^2 \, \frac1n \sum_i \mathrm{KL}\bigl(\mathrm{softmax}(t_i / T) \,\|\, \mathrm{softmax}(s_i / T)\bigr)

    The factor T² keeps the size of the gradient as T grows; as T goes to infinity the loss goes to half
    the mean squared difference of the logits after each row's own mean is taken off. For maps the mean is
    over examples and positions, where `kl_div(..., reduction="batchmean")` would sum over positions.

    Args:
        student: logits (n, classes) or (n, classes, ...).
        teacher: logits of the same shape; gets no gradient.
        temperature: T > 0, in units of the logits.

    Returns:
        A scalar in nats, at least 0 (up to rounding), and 0 where both predict the same.

    Raises:
        TransferError: if the shapes differ or are not those of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> round(tt.losses.kd(student, teacher, temperature=2.0).item(), 4)
        0.4438

    Checked against:
        modelopt's LogitsDistillationLoss, torchdistill's KDLoss, and a loop from the paper.

    Peers:
        All have it. torchdistill's KDLoss drops the factor T² where it is given no weight for the labels.

    References:
        Geoffrey Hinton, Oriol Vinyals, Jeff Dean. Distilling the Knowledge in a Neural Network. 2015.
    """
    want_logits("kd", student=student, teacher=teacher)
    return (temperature**2 * divergence(student / temperature, teacher.detach() / temperature)).mean()
