"""Pieces of losses and alignments whose value and gradient are finite where the plain formula's are not.

Both may import this file; it imports nothing of the library.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = [
    "distances",
    "divergence",
    "entropies",
    "finite",
    "gram",
    "log_other",
    "picked",
    "root",
    "unit",
    "wide",
    "without",
]


def wide(*xs: Tensor) -> tuple[Tensor, ...]:
    """Tensors in one dtype, float32 at least: sums of squares overflow and cancel in half precision."""
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in xs), torch.float32)
    return tuple(x.to(dtype) for x in xs)


def divergence(student: Tensor, teacher: Tensor, dim: int = 1) -> Tensor:
    """KL divergence of the student's softmax from the teacher's along an axis, which it takes away.

    Logarithms throughout: a probability that underflows to 0 still has a finite logarithm.
    """
    log_s, log_t = student.log_softmax(dim), teacher.log_softmax(dim)
    return (log_t.exp() * (log_t - log_s)).sum(dim)


def entropies(logits: Tensor) -> Tensor:
    """Entropy in nats of each row's softmax: (n, classes, ...) -> (n, ...)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def log_other(logits: Tensor, labels: Tensor) -> Tensor:
    """log(1 - p) of the labels' classes: (n, classes, ...), (n, ...) -> (n, ...); finite where p rounds to 1."""
    return without(logits, labels)[1].logsumexp(1) - logits.logsumexp(1)


def root(x: Tensor) -> Tensor:
    """Square root of what is not negative; its slope at 0 is 0, where the root's own is infinite."""
    zero = x <= 0  # what is not a number stays none
    return torch.where(zero, 0, torch.where(zero, 1, x).sqrt())


def unit(x: Tensor, dim: int | tuple[int, ...] = 1) -> Tensor:
    """Vectors of length 1 along some axes; a vector of zeros stays one, with a slope of 0."""
    # By the largest entry first: squares of tiny and of huge numbers leave the range of floats. Then the squares add up
    # to 1 at least, except for zeros, which stay zeros.
    largest = x.detach().abs().amax(dim, keepdim=True)
    x = x / torch.where(largest > 0, largest, torch.inf)
    return x * x.square().sum(dim, keepdim=True).clamp_min(0.5).rsqrt()


def finite(x: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix that decompositions take, zeros if it is not finite, and what to add to their result: 0, or NaN.

    They raise for what is not finite, and one member of an ensemble must not end the others.
    """
    rest = (x.detach() * 0).sum()  # NaN times 0 and infinity times 0 are NaN
    return torch.where(rest == 0, x, 0), rest


def gram(x: Tensor) -> Tensor:
    """Inner products of rows: (n, ...) -> (n, n)."""
    flat = x.flatten(1)
    return flat @ flat.mT


def distances(x: Tensor) -> Tensor:
    """Euclidean distances between rows: (n, ...) -> (n, n). Rows that coincide have distance 0 and a slope of 0."""
    flat = x.flatten(1)
    # Distances do not see a shift, and the squares cancel least around the mean.
    flat = flat - flat.detach().mean(0)
    squares = flat.square().sum(1)
    squared = squares[:, None] + squares - 2 * flat @ flat.mT
    # What is left of rows that coincide is rounding.
    rounding = 8 * torch.finfo(x.dtype).eps * (squares[:, None] + squares).detach()
    same = (squared.detach() <= rounding) | torch.eye(x.shape[0], dtype=torch.bool, device=x.device)
    return root(torch.where(same, 0, squared))


def picked(x: Tensor, labels: Tensor) -> Tensor:
    """The entries of the labels' classes: (n, classes, ...) -> (n, ...)."""
    return x.gather(1, labels.long()[:, None])[:, 0]


def without(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the labels' classes are, and logits (n, classes, ...) without them: -inf, which a softmax leaves out."""
    classes = torch.arange(x.shape[1], device=x.device).reshape(-1, *[1] * (x.ndim - 2))
    there = classes == labels[:, None]
    return there, torch.where(there, -torch.inf, x)
