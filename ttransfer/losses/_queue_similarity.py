"""How alike an embedding is to many others: a queue of them, or the tokens of its own image."""

from __future__ import annotations

from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import divergence, unit, wide
from ttransfer.losses._check import want_alike, want_floats

Number = float | Tensor


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    scale_invariant=True,
    double_backward=True,
    detaches=("queue",),
)
def queue_similarity(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor,
    *,
    temperature: Number = 0.07,
    teacher_temperature: Number = 0.07,
) -> Tensor:
    r"""Divergence of the student's softened similarities to a queue of embeddings from the teacher's.

    .. math::
        \frac1n \sum_i \mathrm{KL}\bigl( \mathrm{softmax}(\hat Q \hat t_i / \tau_t) \,\|\,
        \mathrm{softmax}(\hat Q \hat s_i / \tau_s) \bigr)

    Hats are vectors of length 1. The queue holds embeddings by the teacher of earlier batches; keeping it is the
    caller's. No labels are needed, and the student sees more examples than a batch has.

    Args:
        student: embeddings (n, d), brought to the teacher's width.
        teacher: embeddings (n, d); get no gradient.
        queue: embeddings (k, d), for any k; get no gradient.
        temperature: τ of the student.
        teacher_temperature: τ of the teacher; below the student's it sharpens.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        TransferError: for shapes that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> value = tt.losses.queue_similarity(student, teacher, torch.eye(2), temperature=1.0, teacher_temperature=1.0)
        >>> round(value.item(), 4)  # log 2 minus the entropy of softmax(1, 0)
        0.1109

    Checked against:
        A loop from the formula.

    Peers:
        lightly-train's first and third distillation have it inside a training loop.

    References:
        Zhiyuan Fang, Jianfeng Wang, Lijuan Wang, Lei Zhang, Yezhou Yang, Zicheng Liu.
        SEED: Self-supervised Distillation For Visual Representation. 2021.
    """
    want_alike("queue_similarity", student=student, teacher=teacher)
    want_floats("queue_similarity", queue=queue)
    if student.ndim != 2 or queue.ndim != 2 or queue.shape[1] != student.shape[1]:
        raise TransferError(
            f"queue_similarity: wanted embeddings (n, d) and a queue (k, d), "
            f"got student {shown(student)} and queue {shown(queue)}"
        )
    s, t, keys = wide(student, teacher.detach(), queue.detach())
    return _divergence(s, t, unit(keys), temperature, teacher_temperature).to(student.dtype)


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    scale_invariant=True,
    double_backward=True,
)
def token_similarity(
    student: Tensor, teacher: Tensor, *, temperature: Number = 0.07, teacher_temperature: Number = 0.07
) -> Tensor:
    r"""Divergence of how each token of the student sees the teacher's tokens of the same image.

    .. math::
        \frac{1}{nm} \sum_{i,p} \mathrm{KL}\bigl(
        \mathrm{softmax}_q(\langle \hat t_{ip}, \hat t_{iq} \rangle / \tau_t) \,\|\,
        \mathrm{softmax}_q(\langle \hat s_{ip}, \hat t_{iq} \rangle / \tau_s) \bigr)

    `queue_similarity` with the image's own tokens, by the teacher, for a queue: what it tells is local.

    Args:
        student: tokens (n, tokens, d), brought to the teacher's width and number.
        teacher: tokens of the same shape; get no gradient.
        temperature: τ of the student.
        teacher_temperature: τ of the teacher.

    Returns:
        A scalar in nats, at least 0, a mean over examples and tokens.

    Raises:
        TransferError: if the shapes differ, or are not (n, tokens, d).

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.ones(1, 2, 2), torch.eye(2)[None]
        >>> value = tt.losses.token_similarity(student, teacher, temperature=1.0, teacher_temperature=1.0)
        >>> round(value.item(), 4)  # log 2 minus the entropy of softmax(1, 0)
        0.1109

    Checked against:
        A loop from the formula.

    Peers:
        lightly-train's third distillation compares tokens with tokens inside its training loop.

    References:
        Zhiyuan Fang, Jianfeng Wang, Lijuan Wang, Lei Zhang, Yezhou Yang, Zicheng Liu.
        SEED: Self-supervised Distillation For Visual Representation. 2021.
    """
    want_alike("token_similarity", rank=3, student=student, teacher=teacher)
    if student.ndim != 3:
        raise TransferError(f"token_similarity: wanted tokens (n, tokens, d), got student {shown(student)}")
    s, t = wide(student, teacher.detach())
    return _divergence(s, t, unit(t, 2), temperature, teacher_temperature).to(student.dtype)


def _divergence(student: Tensor, teacher: Tensor, keys: Tensor, tau_s: Number, tau_t: Number) -> Tensor:
    return divergence(unit(student, -1) @ keys.mT / tau_s, unit(teacher, -1) @ keys.mT / tau_t, -1).mean()
