"""Probabilistic knowledge transfer: the probability of picking a neighbour."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import unit, wide
from ttransfer.losses._check import want_rows, want_variant


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    scale_invariant=True,
    rotation_invariant=True,
    double_backward=True,
)
def pkt(
    student: Tensor, teacher: Tensor, *, eps: float | Tensor = 1e-7, variant: Literal["paper", "code"] = "paper"
) -> Tensor:
    r"""Divergence between the neighbourhoods of student and teacher, by a kernel of cosines.

    .. math:: \frac1{n^2} \sum_i \sum_{j \neq i} p_{ij} \log \frac{p_{ij}}{q_{ij}}, \qquad
        p_{ij} = \frac{k(t_i, t_j)}{\sum_{l \neq i} k(t_i, t_l)}, \qquad
        k(x, y) = \frac12 \Bigl( \frac{x \cdot y}{\|x\| \|y\|} + 1 \Bigr) + \epsilon

    q is p for the student. "paper" is the formula, in which no example is its own neighbour, divided by n² as the
    authors' code does. "code" is what they ran: each example is its own neighbour too, which takes part of the
    probability and flattens the rest, and eps is added inside the logarithm instead, where it leaves a pull of
    about eps at equality. One example has no neighbours, and two have one each: the loss of "paper" is then 0.

    Args:
        student: features (n, d) or maps (n, ...).
        teacher: features or maps of the same n; gets no gradient.
        eps: keeps opposite examples from being impossible, without unit.
        variant: "paper" or "code".

    Returns:
        A scalar in nats, at least 0 (up to rounding): the mean over all n² pairs. The usual weight is 30000.

    Raises:
        TransferError: if the numbers of rows differ, for rows that are single numbers, for another variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> x = torch.eye(2)
        >>> round(tt.losses.pkt(x[[0, 1, 0]], x[[0, 0, 1]]).item(), 4)  # log(2) / 18
        0.0385

    Checked against:
        torchdistill's PKTLoss and zhijian's PKTCosSim ("code"), and a loop from the paper.

    Peers:
        torchdistill, RepDistiller, mdistiller and zhijian have "code" only; zhijian with an eps of 1e-6.

    References:
        Nikolaos Passalis, Anastasios Tefas.
        Learning Deep Representations with Probabilistic Knowledge Transfer. 2018.
    """
    want_rows("pkt", student=student, teacher=teacher)
    want_variant("pkt", variant)
    s, t = (_kernel(x) for x in wide(student, teacher.detach()))
    if variant == "paper":
        log_s, log_t = _log_neighbours(s, eps), _log_neighbours(t, eps)
        pairs = log_t.exp() * (log_t - log_s)
        pairs = torch.where(_itself(s), 0, pairs)
    else:
        s, t = (x / x.sum(1, keepdim=True) for x in (s, t))
        pairs = t * ((t + eps) / (s + eps)).log()
    return pairs.mean().to(torch.promote_types(student.dtype, teacher.dtype))


def _kernel(x: Tensor) -> Tensor:
    flat = unit(x.flatten(1))
    # Rounding takes a cosine below -1.
    return ((flat @ flat.mT + 1) / 2).clamp_min(0)


def _itself(square: Tensor) -> Tensor:
    return torch.eye(square.shape[0], dtype=torch.bool, device=square.device)


def _log_neighbours(kernel: Tensor, eps: float | Tensor) -> Tensor:
    """Logarithms of each row's probabilities; those on the diagonal mean nothing."""
    kernel = kernel + eps
    # A single example has no neighbours, and the sum is 0.
    total = torch.where(_itself(kernel), 0, kernel).sum(1, keepdim=True).clamp_min(torch.finfo(kernel.dtype).tiny)
    return torch.where(_itself(kernel), 1, kernel).log() - total.log()
