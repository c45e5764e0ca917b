"""Neighbours in a memory of target rows as a classifier that never saw the source."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import unit, wide
from ttransfer.align._check import classes_of, in_range, same_rows, want_logits, want_tensors, whole


class Memory(NamedTuple):
    """Features and predictions of all target rows.

    Attributes:
        features: (rows, d), each of length 1.
        probabilities: (rows, classes), sharpened and balanced, so that a row need not sum to 1.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.Memory(torch.eye(3), torch.full((3, 2), 0.5)).features.shape
        torch.Size([3, 3])
    """

    features: Tensor
    probabilities: Tensor


@claims(
    coupled=False,
    non_negative=True,
    shift_invariant=True,
    double_backward=True,
    detaches=("neighbours",),
)
def atdoc(logits: Tensor, neighbours: Tensor) -> Tensor:
    r"""Cross-entropy with the class that a row's neighbours vote for, weighted by how clear the vote is.

    .. math:: -\frac1n \sum_i \hat q_{i \hat y_i} \log \mathrm{softmax}(z_i)_{\hat y_i}, \qquad
        \hat y_i = \arg\max_c \hat q_{ic}

    The mean is over rows, as in the paper; `atdoc_normalized` is what the authors' code has.

    Args:
        logits: (n, classes) of target rows.
        neighbours: votes (n, classes) from `neighbourhood`; get no gradient.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        TransferError: if the shapes differ or are not (n, classes).

    Example:
        >>> import torch, ttransfer as tt
        >>> logits, votes = torch.zeros(1, 2), torch.tensor([[0.75, 0.25]])
        >>> round(tt.align.atdoc(logits, votes).item(), 4)  # 0.75 log 2
        0.5199

    Checked against:
        A loop from the formula.

    Peers:
        pytorch-adapt's ATDOC hook weights the rows' cross-entropies by the votes and takes their mean: the same.

    References:
        Jian Liang, Dapeng Hu, Jiashi Feng. Domain Adaptation with Auxiliary Target Domain-Oriented Classifier. 2021.
    """
    entropy, clear = _voted("atdoc", logits, neighbours)
    return (clear * entropy).mean().to(logits.dtype)


@claims(
    coupled=True,
    non_negative=True,
    shift_invariant=True,
    double_backward=True,
    detaches=("neighbours",),
)
def atdoc_normalized(logits: Tensor, neighbours: Tensor) -> Tensor:
    r"""`atdoc` with weights that sum to 1 over the batch, as in the authors' code.

    .. math:: -\frac{\sum_i \hat q_{i \hat y_i} \log \mathrm{softmax}(z_i)_{\hat y_i}}{\sum_i \hat q_{i \hat y_i}},
        \qquad \hat y_i = \arg\max_c \hat q_{ic}

    Only how clear a vote is beside the others of its batch counts.

    Args:
        logits: (n, classes) of target rows.
        neighbours: votes (n, classes) from `neighbourhood`; get no gradient.

    Returns:
        A scalar in nats, at least 0; 0 where there are no votes at all.

    Raises:
        TransferError: if the shapes differ or are not (n, classes).

    Example:
        >>> import torch, ttransfer as tt
        >>> logits, votes = torch.zeros(1, 2), torch.tensor([[0.75, 0.25]])
        >>> round(tt.align.atdoc_normalized(logits, votes).item(), 4)  # log 2
        0.6931

    Checked against:
        A loop from the formula.

    Peers:
        The authors' code; pytorch-adapt has `atdoc`.

    References:
        Jian Liang, Dapeng Hu, Jiashi Feng. Domain Adaptation with Auxiliary Target Domain-Oriented Classifier. 2021.
    """
    entropy, clear = _voted("atdoc_normalized", logits, neighbours)
    total = clear.sum()
    return ((clear * entropy).sum() / torch.where(total > 0, total, 1)).to(logits.dtype)


def neighbourhood(features: Tensor, index: Tensor, memory: Memory, *, neighbours: int = 5) -> Tensor:
    r"""What the nearest rows of a memory vote for: the mean of their stored predictions.

    .. math:: \hat q_i = \frac1k \sum_{j \in N_k(i)} q_j

    N is of the k rows whose features have the largest cosine with row i's, itself not among them.

    Args:
        features: (n, d); get no gradient.
        index: (n,), which rows of the memory these are.
        memory: of more than k rows.
        neighbours: k.

    Returns:
        Votes (n, classes), without gradient.

    Raises:
        TransferError: for features of another width, a memory that is too small, or an index beyond it, where it can be
            looked at.

    Example:
        >>> import torch, ttransfer as tt
        >>> memory = tt.align.Memory(torch.eye(3), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
        >>> tt.align.neighbourhood(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), memory, neighbours=1)
        tensor([[0., 1.]])

    References:
        Jian Liang, Dapeng Hu, Jiashi Feng. Domain Adaptation with Auxiliary Target Domain-Oriented Classifier. 2021.
    """
    _fitting("neighbourhood", features, index, memory)
    rows = memory.features.shape[0]
    whole("neighbourhood", 1, neighbours=neighbours)
    if neighbours >= rows:
        raise TransferError(f"neighbourhood: wanted 1 to {rows - 1} neighbours in a memory of {rows}, got {neighbours}")
    f, stored = wide(features.detach(), memory.features.detach())
    cosines = unit(f) @ stored.mT
    itself = torch.arange(rows, device=index.device) == index[:, None]
    nearest = torch.where(itself, -torch.inf, cosines).topk(neighbours).indices
    return memory.probabilities.detach()[nearest].mean(1)


def remember(
    memory: Memory, features: Tensor, logits: Tensor, index: Tensor, *, temperature: float | Tensor = 0.5
) -> Memory:
    r"""Write a batch of target rows into a memory.

    .. math:: q_{ic} = \frac{p_{ic}^{1/T}}{\sum_{j} p_{jc}^{1/T}}, \qquad p_i = \mathrm{softmax}(z_i)

    The sum is over the batch, for each class by itself: that keeps a frequent class from winning all votes.

    Args:
        memory: stays as it is.
        features: (n, d); get no gradient.
        logits: (n, classes); get no gradient.
        index: (n,), which rows of the memory these are, each once.
        temperature: T > 0, below 1 to sharpen.

    Returns:
        The memory with these rows replaced.

    Raises:
        TransferError: for shapes that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> memory = tt.align.Memory(torch.eye(2), torch.full((2, 2), 0.5))
        >>> new = tt.align.remember(memory, torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), torch.tensor([1]))
        >>> new.features[1], new.probabilities[1]
        (tensor([0.6000, 0.8000]), tensor([1., 1.]))

    References:
        Jian Liang, Dapeng Hu, Jiashi Feng. Domain Adaptation with Auxiliary Target Domain-Oriented Classifier. 2021.
    """
    _fitting("remember", features, index, memory)
    in_range("remember", temperature=temperature)
    same_rows("remember", logits=logits, features=features)
    f, z = wide(features.detach(), logits.detach())
    sharp = (z.log_softmax(1) / temperature).softmax(0)
    return Memory(_put(memory.features, index, unit(f)), _put(memory.probabilities, index, sharp))


def _voted(called: str, logits: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each row with the winner of its vote, and the winner's share."""
    want_logits(called, logits=logits)
    want_tensors(called, neighbours=neighbours)
    if logits.ndim != 2 or neighbours.shape != logits.shape:
        raise TransferError(
            f"{called}: wanted logits and votes (n, classes), got logits {shown(logits)} and votes {shown(neighbours)}"
        )
    z, q = wide(logits, neighbours.detach())
    winner = q.argmax(1, keepdim=True)
    return -z.log_softmax(1).gather(1, winner)[:, 0], q.gather(1, winner)[:, 0]


def _fitting(called: str, features: Tensor, index: Tensor, memory: Memory) -> None:
    want_tensors(called, features=features, index=index)
    width = memory.features.shape[-1]
    if features.ndim != 2 or features.shape[1] != width or index.shape != features.shape[:1]:
        raise TransferError(
            f"{called}: wanted features (n, {width}) and an index (n,), "
            f"got features {shown(features)} and index {shown(index)}"
        )
    classes_of(called, memory.features.shape[0], index=index)


def _put(into: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    return into.scatter(0, index.long()[:, None].expand(-1, into.shape[1]), rows.to(into.dtype))
