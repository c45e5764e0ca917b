"""Attention transfer: where a net looks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import root, unit, wide
from ttransfer.losses._check import want_maps, want_variant


def attention(x: Tensor) -> Tensor:
    """Where the channels are strong: their squares' sum at each place, (n, height * width), of length 1."""
    return unit(x.square().sum(1).flatten(1))


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    scale_invariant=True,
    repeat_invariant=True,
)
def at(student: Tensor, teacher: Tensor, *, variant: Literal["paper", "code"] = "paper") -> Tensor:
    r"""Distance between the places that student and teacher attend to.

    .. math:: \frac1n \sum_i \Bigl\| \frac{q(s_i)}{\|q(s_i)\|} - \frac{q(t_i)}{\|q(t_i)\|} \Bigr\|_2,
        \qquad q(x) = \operatorname{vec} \sum_c x_c^2

    "paper" is the formula: the mean over examples of the distances. "code" is what the authors ran: the mean
    over examples and positions of the squared differences, which has a smaller gradient the nearer the maps are,
    and the smaller the larger the map is; its usual weight is 1000. Channels are summed away, so that their
    numbers may differ; a map of zeros attends nowhere.

    Args:
        student: maps (n, channels, height, width).
        teacher: maps (n, any channels, height, width); gets no gradient.
        variant: "paper" or "code".

    Returns:
        A scalar without unit: from 0 to the root of 2 for "paper", from 0 to 2 / (height * width) for "code".

    Raises:
        TransferError: if rows, heights or widths differ; for what is no map; for another variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> left, right = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
        >>> round(tt.losses.at(left, right).item(), 4)
        1.4142
        >>> tt.losses.at(left, right, variant="code").item()
        1.0

    Checked against:
        torchdistill's ATLoss in both modes, and a loop from the paper.

    Peers:
        RepDistiller, mdistiller, MMRazor and zhijian have "code" only, torchdistill both. zhijian adds 1e-6 to
        the norm.

    References:
        Sergey Zagoruyko, Nikos Komodakis. Paying More Attention to Attention: Improving the Performance of
        Convolutional Neural Networks via Attention Transfer. 2017.
    """
    want_maps("at", channels=False, student=student, teacher=teacher)
    want_variant("at", variant)
    s, t = wide(student, teacher.detach())
    s, t = attention(s), attention(t)
    value = root((s - t).square().sum(1)).mean() if variant == "paper" else F.mse_loss(s, t)
    return value.to(torch.promote_types(student.dtype, teacher.dtype))
