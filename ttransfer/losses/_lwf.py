"""Learning without forgetting: old heads go on predicting what they did."""

from __future__ import annotations

from torch import Tensor

from ttransfer._claims import claims
from ttransfer.losses._check import want_logits


@claims(coupled=False, non_negative=True, shift_invariant=True, class_symmetric=True, double_backward=True)
def lwf(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 2.0) -> Tensor:
    r"""Cross-entropy of an old task's softened predictions with what they were before the new task.

    .. math:: -\frac1n \sum_i \sum_c \mathrm{softmax}(t_i / T)_c \, \log \mathrm{softmax}(s_i / T)_c

    The inputs are the new task's: no old data is needed. The gradient is that of `kd` at the same T, divided by T²;
    the value is larger by the entropy of the teacher's softened predictions. One term for each old head.

    Args:
        student: an old head's logits (n, classes) or (n, classes, ...), on the net that is trained.
        teacher: the same head's, on the net as it was; gets no gradient.
        temperature: T > 0, in units of the logits.

    Returns:
        A scalar in nats: the mean over rows and positions. Lowest where both predict the same, though not 0 there.

    Raises:
        TransferError: if the shapes differ or are not those of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.losses.lwf(torch.zeros(1, 2), torch.tensor([[5.0, -1.0]])).item(), 4)  # log 2
        0.6931

    Checked against:
        `kd` and the entropy, and a loop from the paper.

    Peers:
        TLlib takes the divergence at T = 1, which is lower by the teacher's entropy and has the same gradient there.

    References:
        Zhizhong Li, Derek Hoiem. Learning without Forgetting. 2016.
    """
    want_logits("lwf", student=student, teacher=teacher)
    log_s = (student / temperature).log_softmax(1)
    p_t = (teacher.detach() / temperature).softmax(1)
    return -(p_t * log_s).sum(1).mean()
