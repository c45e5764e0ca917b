"""Consistency: one input seen in two ways, or by a net and its running average, must be predicted alike."""

from __future__ import annotations

from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import divergence, wide
from ttransfer.align._check import in_range, want_logits
from ttransfer.align._pseudo_label import want_views

Number = float | Tensor


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    shift_invariant=True,
    class_symmetric=True,
    double_backward=True,
)
def consistency(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared difference of two predictions' probabilities.

    .. math:: \frac{1}{nc} \sum_{i, j} \bigl( \mathrm{softmax}(s_i)_j - \mathrm{softmax}(t_i)_j \bigr)^2

    With a teacher that is the running average of the student this is the mean teacher's consistency: name the average
    by ``ema={"mean": tt.ema("student", 0.999)}`` and read ``"student(target)"`` and ``"mean(target)"``. With a second
    view, or a second pass of the same net (``"student(target)#2"``), it is the Π-model's.

    Args:
        student: logits (n, classes) or (n, classes, ...).
        teacher: logits of the same shape; get no gradient.

    Returns:
        A scalar without unit, from 0 to 2 / classes: the mean over rows, classes and positions.

    Raises:
        TransferError: if the shapes differ or are not those of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[40.0, 0.0]])
        >>> tt.align.consistency(student, teacher).item()  # 1/2 - 1 and 1/2 - 0
        0.25

    Checked against:
        A loop from the formula.

    Peers:
        The authors' softmax_mse_loss over the rows is the same. TLlib's L2ConsistencyLoss has the sum over classes:
        this times their number, a weight that grows with the task.

    References:
        Antti Tarvainen, Harri Valpola. Mean Teachers are Better Role Models: Weight-Averaged Consistency Targets
        Improve Semi-Supervised Deep Learning Results. 2017.
        Samuli Laine, Timo Aila. Temporal Ensembling for Semi-Supervised Learning. 2017.
    """
    want_logits("consistency", student=student, teacher=teacher)
    if student.shape != teacher.shape:
        raise TransferError(
            f"consistency: wanted logits of one shape, got student {shown(student)} and teacher {shown(teacher)}"
        )
    s, t = wide(student, teacher.detach())
    return (s.softmax(1) - t.softmax(1)).square().mean().to(student.dtype)


@claims(
    coupled=False,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    row_symmetric=True,
    double_backward=True,
    detaches=("weak",),
)
def uda(strong: Tensor, weak: Tensor, *, threshold: Number = 0.8, temperature: Number = 0.4) -> Tensor:
    r"""Divergence of a hard view's prediction from the sharpened one of an easy view, where that is sure.

    .. math::
        \frac1n \sum_i \bigl[ \max_c \mathrm{softmax}(w_i)_c > \beta \bigr] \,
        \mathrm{KL}\bigl( \mathrm{softmax}(w_i / \tau) \,\|\, \mathrm{softmax}(s_i) \bigr)

    Sureness is that before sharpening; the mean is over all rows, those that are not sure too. `fixmatch` is its
    limit at τ = 0.

    Args:
        strong: logits (n, classes) or (n, classes, ...) of the strongly augmented inputs.
        weak: logits of the same shape of the inputs as they are; get no gradient.
        threshold: β, the probability above which a prediction is sure. The default is that for CIFAR-10; for ImageNet
            the paper has 0.5.
        temperature: τ > 0, below 1 to sharpen.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        TransferError: if the shapes differ or are not those of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> strong, weak = torch.zeros(2, 2), torch.tensor([[20.0, 0.0], [1.0, 0.0]])  # the first is sure
        >>> round(tt.align.uda(strong, weak).item(), 4)  # log 2 / 2
        0.3466

    Checked against:
        A loop from the formula.

    Peers:
        TLlib's StrongWeakConsistencyLoss divides the strong view's logits by τ and not the weak one's, so that its
        target is not sharpened and its student is rewarded for being unsure; and it takes the mean over the sure rows
        alone.

    References:
        Qizhe Xie, Zihang Dai, Eduard Hovy, Minh-Thang Luong, Quoc V. Le.
        Unsupervised Data Augmentation for Consistency Training. 2020.
    """
    want_views("uda", strong, weak)
    in_range("uda", 0.0, 1.0, closed=True, threshold=threshold)
    in_range("uda", temperature=temperature)
    s, w = wide(strong, weak.detach())
    sure = w.softmax(1).amax(1) > threshold
    return (divergence(s, w / temperature) * sure).mean().to(strong.dtype)
