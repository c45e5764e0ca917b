"""Co-Tuning: the pretrained head is tuned too, on what its classes mean for the new ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_floats, want_labels, want_logits

__all__ = ["category_relation", "co_tuning"]


@claims(coupled=False, non_negative=True, shift_invariant=True, double_backward=True)
def co_tuning(source_logits: Tensor, labels: Tensor, *, relation: Tensor) -> Tensor:
    r"""Cross-entropy of the pretrained head's predictions with the old classes that a new label stands for.

    .. math:: -\frac1n \sum_i \sum_c p(c \mid y_i) \, \log \mathrm{softmax}(z_i)_c

    It stands beside the cross-entropy of the new head on the labels; the authors' code weighs it by 2.3.

    Args:
        source_logits: the pretrained head's logits (n, old classes) or (n, old classes, ...) on the new task's inputs.
        labels: of the new task, (n,) or (n, ...), from 0 to new classes - 1.
        relation: p(old class | new class), (new classes, old classes), as `category_relation` gives it; gets no
            gradient.

    Returns:
        A scalar in nats, at least 0: the mean over rows and positions.

    Raises:
        TransferError: for labels that are none, or a relation that has not a column for each old class.

    Example:
        >>> import torch, ttransfer as tt
        >>> relation = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
        >>> round(tt.losses.co_tuning(torch.zeros(2, 3), torch.tensor([0, 1]), relation=relation).item(), 4)  # log 3
        1.0986

    Checked against:
        `torch.nn.functional.cross_entropy` with probabilities, and a loop from the paper.

    Peers:
        TLlib has it, with the relation as a NumPy array that is indexed on the host for each batch.

    References:
        Kaichao You, Zhi Kou, Mingsheng Long, Jianmin Wang. Co-Tuning for Transfer Learning. 2020.
    """
    want_logits("co_tuning", source_logits=source_logits)
    want_labels("co_tuning", source_logits, labels)
    want_floats("co_tuning", relation=relation)
    if relation.ndim != 2 or relation.shape[1] != source_logits.shape[1]:
        raise TransferError(
            f"co_tuning: wanted a relation (new classes, {source_logits.shape[1]} old classes), got {shown(relation)}"
        )
    z, p = wide(source_logits, relation.detach())
    wanted = p[labels].movedim(-1, 1)
    return -(wanted * z.log_softmax(1)).sum(1).mean().to(source_logits.dtype)


def category_relation(source_probabilities: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    r"""What the old classes mean for the new ones, from the pretrained net's predictions on the new task.

    .. math:: p(c \mid y) = \frac{1}{|\{i : y_i = y\}|} \sum_{i : y_i = y} p_i(c)

    The paper's direct approach; its predictions come from the pretrained head, calibrated on the old task. For more
    rows than fit at once, take the mean over batches of as many rows of each class.

    Args:
        source_probabilities: the pretrained head's predictions (n, old classes), each row of sum 1.
        labels: of the new task, (n,), from 0 to classes - 1.
        classes: the number of new classes.

    Returns:
        p(old class | new class), (classes, old classes). A class without rows gets the mean over all rows.

    Raises:
        TransferError: for labels that are none, no classes, or no rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> probabilities = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
        >>> tt.losses.category_relation(probabilities, torch.tensor([0, 0, 1]), classes=2)
        tensor([[0.7500, 0.2500],
                [0.0000, 1.0000]])

    References:
        Kaichao You, Zhi Kou, Mingsheng Long, Jianmin Wang. Co-Tuning for Transfer Learning. 2020.
    """
    want_floats("category_relation", source_probabilities=source_probabilities)
    want_labels("category_relation", source_probabilities, labels)
    if source_probabilities.ndim != 2 or source_probabilities.shape[0] == 0 or classes < 1:
        raise TransferError(
            f"category_relation: wanted probabilities (n, old classes) and classes of at least 1, "
            f"got {shown(source_probabilities)} and {classes}"
        )
    (p,) = wide(source_probabilities)
    belongs = (labels == torch.arange(classes, device=labels.device)[:, None]).to(p.dtype)
    counts = belongs.sum(1, keepdim=True)
    means = torch.where(counts > 0, belongs @ p / counts.clamp_min(1), p.mean(0))
    return means.to(source_probabilities.dtype)
