"""Neuron selectivity transfer: what the channels respond to, as a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import unit, wide
from ttransfer.losses._check import want_maps


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    scale_invariant=True,
    repeat_invariant=True,
    double_backward=True,
)
def nst(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared maximum mean discrepancy between the channels of student and teacher, with the kernel (x·y)².

    .. math:: \frac1n \sum_i \biggl[
        \frac1{c^2} \sum_{k,l} (s_{ik} \cdot s_{il})^2 + \frac1{d^2} \sum_{k,l} (t_{ik} \cdot t_{il})^2
        - \frac2{cd} \sum_{k,l} (s_{ik} \cdot t_{il})^2 \biggr]

    Each channel's map is one sample, a vector over positions of length 1; so the numbers of channels, c and d,
    may differ. This is the polynomial kernel of degree 2 without a constant, which the paper found best. It is also
    the squared distance between the second moments over positions, which is what is computed for small maps.

    Args:
        student: maps (n, c, height, width).
        teacher: maps (n, d, height, width); gets no gradient.

    Returns:
        A scalar without unit, from 0 to 2: the mean over examples. The usual weight is 50.

    Raises:
        TransferError: if rows, heights or widths differ; for what is no map.

    Example:
        >>> import torch, ttransfer as tt
        >>> left, right = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
        >>> tt.losses.nst(left, right).item()
        2.0

    Checked against:
        zhijian's NST, and a loop from the paper.

    Peers:
        mdistiller, RepDistiller and zhijian have it, all three by an array of n · c · d · positions.

    References:
        Zehao Huang, Naiyan Wang. Like What You Like: Knowledge Distill via Neuron Selectivity Transfer. 2017.
    """
    want_maps("nst", channels=False, student=student, teacher=teacher)
    s, t = (unit(x.flatten(2), 2) for x in wide(student, teacher.detach()))
    c, d, places = s.shape[1], t.shape[1], s.shape[2]
    if 2 * places <= c + d:
        values = (s.mT @ s / c - t.mT @ t / d).square().sum((1, 2))
    else:
        values = _mean_kernel(s, s) + _mean_kernel(t, t) - 2 * _mean_kernel(s, t)
        # Rounding may leave -1e-8. The value is lifted to 0, the gradient stays.
        values = values - values.detach().clamp_max(0)
    return values.mean().to(torch.promote_types(student.dtype, teacher.dtype))


def _mean_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT).square().mean((1, 2))
