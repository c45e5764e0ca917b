"""Contrastive representation distillation: by a memory of all examples, or within the batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import unit, wide
from ttransfer.losses._check import want_alike, want_floats

Number = float | Tensor


@claims(
    coupled=True,
    non_negative=True,
    detaches=(),
    not_stationary="each side is drawn to what the memory holds of the other, not to the other",
)
def crd(
    student: Tensor,
    teacher: Tensor,
    memory_s: Tensor,
    memory_t: Tensor,
    *,
    size: Number,
    z_s: Number | None = None,
    z_t: Number | None = None,
    temperature: Number = 0.07,
) -> Tensor:
    r"""Noise-contrastive estimate of what the student's and the teacher's embeddings tell of each other.

    .. math::
        \ell(a, m, Z) = -\frac1n \sum_i \Bigl[ \log h_{i0} + \sum_{k=1}^K \log(1 - h_{ik}) \Bigr], \quad
        h_{ik} = \frac{e^{\langle a_i, m_{ik} \rangle / \tau} / Z}{e^{\langle a_i, m_{ik} \rangle / \tau} / Z + K/N},
        \qquad \ell(s, m^t, Z_s) + \ell(t, m^s, Z_t)

    The memories are averages of what the embeddings were. Keeping and drawing them is the caller's; so are the
    constants Z, which the paper takes from the first batch and then leaves. Nothing is detached: the embedding of
    the teacher learns as well, so let the gradient end before that, at the teacher's own features.

    Args:
        student: embeddings (n, d); made unit vectors.
        teacher: embeddings (n, d); made unit vectors.
        memory_s: rows of the student's memory (n, 1 + K, d), taken as they are: first that of the same example,
            then those of K others.
        memory_t: rows of the teacher's memory, likewise.
        size: N, the number of examples that the others are drawn from.
        z_s: Z for the student's embeddings. None takes N times this batch's mean of exp(⟨s, m⟩/τ), without
            gradient, as the paper does once.
        z_t: Z for the teacher's embeddings, likewise.
        temperature: τ > 0.

    Returns:
        A scalar in nats, at least 0: a mean over examples of a sum over both directions and all K + 1 rows.

    Raises:
        TransferError: for shapes that do not fit, or no negatives.

    Example:
        >>> import torch, ttransfer as tt
        >>> x, memory = torch.tensor([[1.0]]), torch.zeros(1, 2, 1)  # h = 1 / (1 + 1) for all
        >>> round(tt.losses.crd(x, x, memory, memory, size=1.0, z_s=1.0, z_t=1.0).item(), 4)  # 4 log 2
        2.7726

    Checked against:
        torchdistill's CRDLoss (contrast_idx given, eps 0), zhijian's CRD, and a loop from the paper.

    Peers:
        torchdistill, mdistiller, RepDistiller, zhijian, MMRazor: all add 1e-7 to denominators. torchdistill
        cannot draw the negatives itself: without contrast_idx it ends in an AttributeError.

    References:
        Yonglong Tian, Dilip Krishnan, Phillip Isola. Contrastive Representation Distillation. 2020.
    """
    want_alike("crd", student=student, teacher=teacher)
    want_floats("crd", memory_s=memory_s, memory_t=memory_t)
    for memory in (memory_s, memory_t):
        fits = student.ndim == 2 and memory.ndim == 3 and memory.shape[::2] == student.shape
        if not fits or memory.shape[1] < 2:
            raise TransferError(
                f"crd: wanted embeddings (n, d) and memories (n, 1 + negatives, d), got student {shown(student)}, "
                f"memory_s {shown(memory_s)} and memory_t {shown(memory_t)}"
            )
    s, t, m_s, m_t = wide(student, teacher, memory_s, memory_t)
    loss = _one_way(s, m_t, size, z_s, temperature) + _one_way(t, m_s, size, z_t, temperature)
    return loss.to(student.dtype)


def _one_way(anchor: Tensor, memory: Tensor, size: Number, z: Number | None, temperature: Number) -> Tensor:
    scores = (memory @ unit(anchor)[:, :, None]).squeeze(2) / temperature
    log_z = log_partition(scores, size) if z is None else (scores.new_ones(()) * z).log()
    return contrast(scores, log_z, size)


def log_partition(scores: Tensor, size: Number) -> Tensor:
    """log Z by a batch: N times the mean of exp(scores), without gradient; scores are inner products by τ."""
    held = scores.detach()
    return (held - held.max()).exp().mean().log() + held.max() + (held.new_ones(()) * size).log()


def contrast(scores: Tensor, log_z: Tensor, size: Number) -> Tensor:
    """The estimate for one direction; scores (n, 1 + K) are inner products by τ, the same example's first."""
    # The odds of data against noise: h = sigmoid, finite where exp is not.
    odds = scores - log_z - (scores.new_ones(()) * (scores.shape[1] - 1) / size).log()
    return -(F.logsigmoid(odds[:, 0]) + F.logsigmoid(-odds[:, 1:]).sum(1)).mean()


@claims(
    coupled=True,
    non_negative=True,
    symmetric=True,
    scale_invariant=True,
    rotation_invariant=True,
    double_backward=True,
    not_stationary="equal rows are drawn together, and all others pushed apart",
)
def crd_in_batch(student: Tensor, teacher: Tensor, *, temperature: Number = 0.07) -> Tensor:
    r"""Contrast of each example's embedding with the other examples of the batch, in place of a memory: InfoNCE.

    .. math::
        -\frac{1}{2n} \sum_i \Bigl[ \log \frac{e^{c_{ii}}}{\sum_j e^{c_{ij}}}
        + \log \frac{e^{c_{ii}}}{\sum_j e^{c_{ji}}} \Bigr], \qquad c_{ij} = \langle s_i, t_j \rangle / \tau

    No state and no second pass: the negatives are the n - 1 other rows, so that it wants large batches. log n minus
    the loss is, on average, a lower bound of the mutual information of both embeddings.

    Args:
        student: embeddings (n, d); made unit vectors.
        teacher: embeddings (n, d); made unit vectors, get no gradient.
        temperature: τ > 0.

    Returns:
        A scalar in nats, at least 0; 0 for one row, log n where all rows are equal.

    Raises:
        TransferError: if the shapes differ, or are not (n, d).

    Example:
        >>> import torch, ttransfer as tt
        >>> x = torch.eye(2)
        >>> round(tt.losses.crd_in_batch(x, x, temperature=1.0).item(), 4)  # log(1 + exp(-1))
        0.3133

    Checked against:
        A loop.

    Peers:
        No distillation package; pytorch-metric-learning's NTXentLoss is one direction of it.

    References:
        Yonglong Tian, Dilip Krishnan, Phillip Isola. Contrastive Representation Distillation. 2020.
        Aaron van den Oord, Yazhe Li, Oriol Vinyals.
        Representation Learning with Contrastive Predictive Coding. 2018.
    """
    want_alike("crd_in_batch", student=student, teacher=teacher)
    if student.ndim != 2:
        raise TransferError(f"crd_in_batch: wanted embeddings (n, d), got student {shown(student)}")
    s, t = wide(student, teacher.detach())
    scores = unit(s) @ unit(t).mT / temperature
    both = scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()
    return (-both.mean() / 2).to(student.dtype)
