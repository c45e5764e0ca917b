"""Slopes with respect to the input: Sobolev training and Jacobian matching."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import unit, wide
from ttransfer.losses._check import want_alike


@claims(coupled=False, zero_at_equality=True, non_negative=True, symmetric=True, double_backward=True)
def sobolev(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared difference of two nets' slopes with respect to their input.

    .. math:: \frac{1}{n d} \sum_i \| \nabla_x f_s(x_i) - \nabla_x f_t(x_i) \|^2

    The slopes are taken before, by `torch.func.grad` of a score such as the sum of the labels' logits, so that a
    loss of two functions is one of two tensors. In a term the path "student:fn" gives a net as a pure function:
    the term's own function takes the slopes of both nets at the input, and calls this.

    Args:
        student: slopes (n, ...) of one of the student's outputs, or of a score such as the label's logit, with
            respect to the input.
        teacher: slopes of the same shape; get no gradient.

    Returns:
        A scalar in the squared units of the slopes, at least 0.

    Raises:
        TransferError: if the shapes differ.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[2.0], [4.0]]), torch.full((2, 1), 3.0)  # of x² and 3x, at 1 and 2
        >>> tt.losses.sobolev(student, teacher).item()  # ((2 - 3)² + (4 - 3)²) / 2
        1.0

    Checked against:
        A loop.

    Peers:
        No package: zhijian's Sobolev normalises the slopes, which is `jacobian_matching`.

    References:
        Wojciech Marian Czarnecki, Simon Osindero, Max Jaderberg, Grzegorz Świrszcz, Razvan Pascanu.
        Sobolev Training for Neural Networks. 2017.
    """
    want_alike("sobolev", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    return F.mse_loss(s, t).to(student.dtype)


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    scale_invariant=True,
    rotation_invariant=True,
    double_backward=True,
)
def jacobian_matching(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared distance of the directions in which two nets' outputs rise.

    .. math::
        \frac1n \sum_i \Bigl\| \frac{\nabla f_s(x_i)}{\|\nabla f_s(x_i)\|}
        - \frac{\nabla f_t(x_i)}{\|\nabla f_t(x_i)\|} \Bigr\|^2

    How steep the nets are does not matter. One logit is enough, such as the label's.

    Args:
        student: slopes (n, ...) with respect to the input, or to a map inside.
        teacher: slopes of the same shape; get no gradient.

    Returns:
        A scalar without units, from 0 (the same directions) to 4 (opposite ones).

    Raises:
        TransferError: if the shapes differ.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.losses.jacobian_matching(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])).item()
        2.0

    Checked against:
        zhijian's Sobolev times the number of inputs, and a loop.

    Peers:
        zhijian's Sobolev: a mean over inputs where this, with the paper, has a sum, so that its size falls with
        the image's.

    References:
        Suraj Srinivas, Francois Fleuret. Knowledge Transfer with Jacobian Matching. 2018.
    """
    want_alike("jacobian_matching", student=student, teacher=teacher)
    s, t = wide(student, teacher.detach())
    s, t = unit(s.flatten(1)), unit(t.flatten(1))
    return (F.mse_loss(s, t) * s.shape[1]).to(student.dtype)
