"""From the classes of one domain to those of another."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer._numeric import wide
from ttransfer.align._check import classes_of, items, want_tensors

__all__ = ["class_matrix", "map_labels", "map_logits", "map_probabilities"]


def class_matrix(table: Tensor, *, classes: int) -> Tensor:
    r"""The table old class -> new class as a matrix of zeros and ones.

    .. math:: M_{ok} = [\, \mathrm{table}_o = k \,]

    Args:
        table: (old classes,) of whole numbers: the new class of each; what is none of them, such as -100, is dropped.
        classes: how many new ones there are.

    Returns:
        (old classes, new classes), float32.

    Raises:
        TransferError: for a table that is no row of whole numbers, or no classes.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.class_matrix(torch.tensor([0, 1, 1]), classes=2)  # two kinds of one organ
        tensor([[1., 0.],
                [0., 1.],
                [0., 1.]])
    """
    _want_table("class_matrix", table)
    if classes < 1:
        raise TransferError(f"class_matrix: wanted at least 1 class, got {classes}")
    return (table[:, None] == torch.arange(classes, device=table.device)).float()


def map_labels(labels: Tensor, table: Tensor, *, ignore: int = -100) -> Tensor:
    r"""Labels of one domain's classes as labels of another's.

    .. math:: y' = \mathrm{table}_y

    Args:
        labels: whole numbers of any shape, each an old class or `ignore`.
        table: (old classes,): the new class of each, or `ignore` for one that the other domain does not have.
        ignore: what no class is; it stays.

    Returns:
        New classes, of the labels' shape and the table's dtype.

    Raises:
        TransferError: for floating labels, a table that is no row of whole numbers, or labels that are no old class,
            where they can be looked at.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.map_labels(torch.tensor([0, 2, 1, -100]), torch.tensor([0, 1, 1]))
        tensor([   0,    1,    1, -100])

    Checked against:
        A loop.

    Peers:
        e2eAIOK maps predictions of 16 organs to those of kidneys by a function that each task writes anew.
    """
    _want_table("map_labels", table)
    want_tensors("map_labels", labels=labels)
    if labels.is_floating_point() or labels.dtype.is_complex:
        raise TransferError(f"map_labels: wanted labels of whole numbers, got {items(labels=labels)}")
    classes_of("map_labels", table.shape[0], ignored=ignore, labels=labels)
    kept = labels != ignore
    return torch.where(kept, table[torch.where(kept, labels, 0).long()], ignore)


def map_probabilities(probabilities: Tensor, matrix: Tensor) -> Tensor:
    r"""Probabilities of one domain's classes as probabilities of another's.

    .. math:: q_{ik} = \sum_o p_{io} M_{ok}

    Args:
        probabilities: (n, old classes) or maps (n, old classes, ...).
        matrix: (old classes, new classes), at least 0, such as `class_matrix` makes. Rows that sum to 1 keep the sum.

    Returns:
        (n, new classes, ...).

    Raises:
        TransferError: for shapes that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> matrix = tt.align.class_matrix(torch.tensor([0, 1, 1]), classes=2)
        >>> tt.align.map_probabilities(torch.tensor([[0.5, 0.25, 0.25]]), matrix)
        tensor([[0.5000, 0.5000]])

    Checked against:
        A loop.
    """
    _want_matrix("map_probabilities", probabilities, matrix)
    p, m = wide(probabilities, matrix)
    return torch.einsum("no...,ok->nk...", p, m).to(probabilities.dtype)


def map_logits(logits: Tensor, matrix: Tensor) -> Tensor:
    r"""Logits of one domain's classes as logits of another's: their softmax is the mapped softmax.

    .. math:: z'_{ik} = \log \sum_o M_{ok} e^{z_{io}}

    Where the rows of M sum to 1, that is `map_probabilities` of the softmax; where they sum to 0 the class is dropped
    and the others share its part. A new class without an old one gets -inf, and no gradient.

    Args:
        logits: (n, old classes) or maps (n, old classes, ...).
        matrix: (old classes, new classes), at least 0, such as `class_matrix` makes.

    Returns:
        (n, new classes, ...).

    Raises:
        TransferError: for shapes that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> matrix = tt.align.class_matrix(torch.tensor([0, 1, 1]), classes=2)
        >>> tt.align.map_logits(torch.zeros(1, 3), matrix).softmax(1)
        tensor([[0.3333, 0.6667]])

    Checked against:
        `map_probabilities` of the softmax.

    Peers:
        e2eAIOK takes the largest of the logits instead, which counts two halves of an organ as one half.
    """
    _want_matrix("map_logits", logits, matrix)
    z, m = wide(logits, matrix)
    by = m.reshape(*m.shape, *[1] * (z.ndim - 2))
    # One class at a time: of a volume, all pairs of classes at once would not fit.
    return torch.stack([_log_sum(z, by[:, k]) for k in range(m.shape[1])], 1).to(logits.dtype)


def _log_sum(z: Tensor, by: Tensor) -> Tensor:
    """The logarithm of the sum of by · exp(z) over classes; by its own largest, however far below the others it is."""
    there = by > 0
    largest = torch.where(there, z.detach(), -torch.inf).amax(1, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, 0)
    total = (by * torch.where(there, z - largest, -torch.inf).exp()).sum(1)
    none = total <= 0
    return torch.where(none, -torch.inf, torch.where(none, 1, total).log() + largest[:, 0])


def _want_table(called: str, table: Tensor) -> None:
    want_tensors(called, table=table)
    if table.ndim != 1 or table.is_floating_point() or table.shape[0] == 0:
        raise TransferError(f"{called}: wanted a table (old classes,) of whole numbers, got {items(table=table)}")


def _want_matrix(called: str, x: Tensor, matrix: Tensor) -> None:
    want_tensors(called, given=x, matrix=matrix)
    if x.ndim < 2 or matrix.ndim != 2 or matrix.shape[0] != x.shape[1] or not x.is_floating_point():
        raise TransferError(
            f"{called}: wanted (n, old classes, ...) and a matrix (old classes, new classes), got "
            + items(given=x, matrix=matrix)
        )
