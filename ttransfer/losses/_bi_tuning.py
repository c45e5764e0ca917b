"""Bi-Tuning: two contrasts with a memory of keys, one for the classifier and one for the projector."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import unit, wide
from ttransfer.losses._check import want_alike, want_floats, want_labels, want_rows

__all__ = ["categorical_contrast", "contrastive_cross_entropy"]


@claims(coupled=False, non_negative=True, scale_invariant=True, double_backward=True)
def categorical_contrast(
    student: Tensor, keys: Tensor, labels: Tensor, memory: Tensor, *, temperature: float | Tensor = 0.07
) -> Tensor:
    r"""Contrast of a projected example with keys: those of its own class against all.

    .. math::
        -\frac1n \sum_i \frac{1}{K + 1} \sum_{k \in P_i} \log
        \frac{\exp(\langle z_i, k \rangle / T)}{\sum_{k' \in P_i \cup N_i} \exp(\langle z_i, k' \rangle / T)}

    P are the example's own key and the K keys of its class in the memory, N those of the other classes. All vectors
    are brought to length 1 first. Lowest is log(K + 1), where the keys of the class win alike.

    Args:
        student: projections of the queries, (n, d).
        keys: projections of the same examples by the slow encoder, (n, d); they get no gradient.
        labels: (n,), from 0 to classes - 1.
        memory: earlier keys, (classes, K, d), K for each class; they get no gradient. The paper keeps 40.
        temperature: T > 0.

    Returns:
        A scalar in nats, at least log(K + 1): the mean over rows.

    Raises:
        TransferError: for shapes that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> x, memory = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> value = tt.losses.categorical_contrast(x, x, torch.tensor([0]), memory, temperature=1.0)
        >>> round(value.item(), 4)  # log(2 + 1/e)
        0.862

    Checked against:
        TLlib's logits and divergence written out, and a loop from the paper.

    Peers:
        TLlib has the divergence from uniform labels, which is lower by log(K + 1), in a loop over rows; its memory
        starts as random vectors, which are contrasted with until they are replaced.

    References:
        Jincheng Zhong, Ximei Wang, Zhi Kou, Jianmin Wang, Mingsheng Long.
        Bi-tuning of Pre-trained Representations. 2020.
    """
    want_alike("categorical_contrast", student=student, keys=keys)
    _want_memory("categorical_contrast", student, labels, memory)
    z, k, old = wide(student, keys.detach(), memory.detach())
    z, k, old = unit(z), unit(k), unit(old, 2)
    own = (z * k).sum(1)
    scores = torch.einsum("nd,ckd->nck", z, old)
    return _contrast(own, scores, labels, temperature).to(student.dtype)


@claims(coupled=False, non_negative=True, scale_invariant=True, double_backward=True)
def contrastive_cross_entropy(
    student: Tensor, labels: Tensor, prototypes: Tensor, memory: Tensor, *, temperature: float | Tensor = 0.07
) -> Tensor:
    r"""Contrast of a class's weights with features: an example and the memory of its class against all others.

    .. math::
        -\frac1n \sum_i \frac{1}{K + 1} \sum_{h \in P_i} \log
        \frac{\exp(\langle h, w_{y_i} \rangle / T)}{\sum_{h' \in P_i \cup N_i} \exp(\langle h', w_{y_i} \rangle / T)}

    Where cross-entropy compares classes for one example, this compares examples for one class. P are the example's
    own features and the K of its class in the memory, N those of the other classes. All vectors are brought to length
    1 first; for a head with a bias, append it to its weights and 1 to features and memory.

    Args:
        student: features before the head, (n, d).
        labels: (n,), from 0 to classes - 1.
        prototypes: the head's weights, (classes, d); they get no gradient, as in the authors' code.
        memory: earlier features of the slow encoder, (classes, K, d); they get no gradient. The paper keeps 40.
        temperature: T > 0.

    Returns:
        A scalar in nats, at least log(K + 1): the mean over rows.

    Raises:
        TransferError: for shapes that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> x, memory = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> label, head = torch.tensor([0]), torch.eye(2)
        >>> value = tt.losses.contrastive_cross_entropy(x, label, head, memory, temperature=1.0)
        >>> round(value.item(), 4)  # log(2 + 1/e)
        0.862

    Checked against:
        TLlib's logits and divergence written out, and a loop from the paper.

    Peers:
        TLlib has the divergence from uniform labels, which is lower by log(K + 1), in a loop over rows.

    References:
        Jincheng Zhong, Ximei Wang, Zhi Kou, Jianmin Wang, Mingsheng Long.
        Bi-tuning of Pre-trained Representations. 2020.
    """
    want_rows("contrastive_cross_entropy", student=student)
    _want_memory("contrastive_cross_entropy", student, labels, memory)
    want_floats("contrastive_cross_entropy", prototypes=prototypes)
    if prototypes.shape != (memory.shape[0], student.shape[1]):
        raise TransferError(
            f"contrastive_cross_entropy: wanted prototypes ({memory.shape[0]} classes, {student.shape[1]}), "
            f"got {shown(prototypes)}"
        )
    h, w, old = wide(student, prototypes.detach(), memory.detach())
    h, w, old = unit(h), unit(w)[labels], unit(old, 2)
    own = (h * w).sum(1)
    scores = torch.einsum("nd,ckd->nck", w, old)
    return _contrast(own, scores, labels, temperature).to(student.dtype)


def _contrast(own: Tensor, scores: Tensor, labels: Tensor, temperature: float | Tensor) -> Tensor:
    """Cross-entropy with uniform probabilities over an example's own score (n,) and its class's in (n, classes, K)."""
    positive = labels[:, None] == torch.arange(scores.shape[1], device=labels.device)
    attracted = (own + torch.where(positive, scores.sum(2), 0).sum(1)) / (scores.shape[2] + 1)
    every = torch.cat([own[:, None], scores.flatten(1)], 1) / temperature
    return (every.logsumexp(1) - attracted / temperature).mean()


def _want_memory(called: str, student: Tensor, labels: Tensor, memory: Tensor) -> None:
    want_floats(called, memory=memory)
    if student.ndim != 2 or memory.ndim != 3 or memory.shape[2] != student.shape[1]:
        raise TransferError(
            f"{called}: wanted rows (n, d) and a memory (classes, K, d), got {shown(student)} and {shown(memory)}"
        )
    want_labels(called, student, labels)
