"""Attention decides which layer, or which channel, is distilled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import unit, wide
from ttransfer.losses._check import want_floats, want_maps

Layers = Tensor | Sequence[Tensor]


@claims(
    coupled=False,
    non_negative=True,
    double_backward=True,
    not_stationary="every layer of the student is drawn to every layer of the teacher",
)
def afd(student: Layers, teacher: Layers, query: Tensor, key: Tensor, position: Tensor | None = None) -> Tensor:
    r"""Attention maps of all pairs of layers, weighted by how alike a learned attention finds them.

    .. math::
        \sum_t \frac1n \sum_i \sum_s \alpha_{its} \, \frac{1}{hw} \| \varphi(T_{it}) - \varphi(S_{is}) \|^2, \qquad
        \alpha_{it} = \mathrm{softmax}_s \frac{\langle q_{it}, k_{ist} \rangle + p_{ts}}{\sqrt d}, \qquad
        \varphi(F) = \frac{\bar F}{\| \bar F \|}, \quad \bar F = \frac1c \sum_c F_c^2

    Before φ each of the student's maps is pooled to the size of the teacher's. The layers that make queries of
    the teacher's features and keys of the student's are the caller's and learn: query, key and position get
    gradients. Pool the teacher's features without gradient before them.

    Args:
        student: maps (n, channels, height, width) of several layers, of any sizes; or one tensor
            (n, layers, channels, height, width).
        teacher: likewise; gets no gradient.
        query: (n, teacher's layers, d).
        key: (n, student's layers, d), or (n, student's layers, teacher's layers, d) as from the authors'
            bilinear weights.
        position: (teacher's layers, student's layers), added to the products; None for none.

    Returns:
        A scalar without units, at least 0: a sum over the teacher's layers of means over examples.

    Raises:
        TransferError: for what are no maps of the same rows, or queries and keys that do not fit them.

    Example:
        >>> import torch, ttransfer as tt
        >>> student = [torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]])]
        >>> query, key = torch.zeros(1, 1, 4), torch.zeros(1, 2, 4)  # both layers count alike
        >>> tt.losses.afd(student, student[:1], query, key).item()  # 1/2 of 0, 1/2 of |(1, 0) - (0, 1)|² / 2
        0.5

    Checked against:
        A loop from the paper's formula.

    Peers:
        The authors' code, whose value this is. zhijian's AFD is another method, here `afd_channels`.

    References:
        Mingi Ji, Byeongho Heo, Sungrae Park.
        Show, Attend and Distill: Knowledge Distillation via Attention-based Feature Matching. 2021.
    """
    s, t = _layers("student", student), _layers("teacher", teacher)
    named = {f"student[{i}]": x for i, x in enumerate(s)} | {f"teacher[{i}]": x for i, x in enumerate(t)}
    want_maps("afd", channels=False, space=False, **named)
    want_floats("afd", query=query, key=key)
    n = s[0].shape[0]
    keyed = key if key.ndim == 4 else key[:, :, None]
    fits = query.ndim == 3 and key.ndim in (3, 4) and query.shape[:2] == (n, len(t)) and keyed.shape[:2] == (n, len(s))
    if not fits or keyed.shape[2] not in (1, len(t)) or keyed.shape[-1] != query.shape[-1]:
        raise TransferError(
            f"afd: wanted queries (n, {len(t)}, d) and keys (n, {len(s)}, d) for n = {n}, "
            f"got query {shown(query)} and key {shown(key)}"
        )
    if position is not None and position.shape != (len(t), len(s)):
        raise TransferError(f"afd: wanted position ({len(t)}, {len(s)}), got {shown(position)}")
    query, keyed = wide(query, keyed)
    products = (query[:, :, None] * keyed.transpose(1, 2)).sum(-1)
    products = products if position is None else products + position
    weights = (products / math.sqrt(query.shape[-1])).softmax(2)
    energies = [x.square().mean(1, keepdim=True) for x in wide(*s)]
    total = weights.new_zeros(())
    size, pooled = (0, 0), weights
    for i, x in enumerate(wide(*t)):
        if (x.shape[2], x.shape[3]) != size:
            size = (x.shape[2], x.shape[3])
            pooled = torch.stack([unit(F.adaptive_avg_pool2d(e, size).flatten(1)) for e in energies], 1)
        wanted = unit(x.detach().square().mean(1).flatten(1))
        total = total + ((pooled - wanted[:, None]).square().mean(2) * weights[:, i]).sum(1).mean()
    return total.to(s[0].dtype)


@claims(coupled=False, zero_at_equality=True, non_negative=True, symmetric=True, double_backward=True)
def afd_channels(student: Tensor, teacher: Tensor, attention: Tensor) -> Tensor:
    r"""Squared distance of normalised channels, weighted by the attention paid to each.

    .. math::
        \frac1n \sum_i \sum_c \rho_{ic} \, \frac{1}{hw} \Bigl\|
        \frac{S_{ic}}{\|S_{ic}\|} - \frac{T_{ic}}{\|T_{ic}\|} \Bigr\|^2

    The attention comes from a small network on the teacher's pooled map, which is the caller's and learns.

    Args:
        student: maps (n, channels, height, width).
        teacher: maps of the same shape; gets no gradient.
        attention: ρ, (n, channels), not negative, each row of sum 1.

    Returns:
        A scalar without units, at least 0.

    Raises:
        TransferError: for what are no maps of one shape, or another number of weights than of channels.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
        >>> tt.losses.afd_channels(student, teacher, torch.ones(1, 1)).item()
        1.0

    Checked against:
        zhijian's AFD with its eps at 0, and a loop.

    Peers:
        zhijian, which adds 1e-6 to the norms and learns the attention in the loss. The paper has no norms.

    References:
        Kafeng Wang, Xitong Gao, Yiren Zhao, Xingjian Li, Dejing Dou, Cheng-Zhong Xu.
        Pay Attention to Features, Transfer Learn Faster CNNs. 2020.
    """
    want_maps("afd_channels", student=student, teacher=teacher)
    want_floats("afd_channels", attention=attention)
    if attention.shape != student.shape[:2]:
        raise TransferError(
            f"afd_channels: wanted one weight for each channel, got student {shown(student)} "
            f"and attention {shown(attention)}"
        )
    s, t, rho = wide(student, teacher.detach(), attention)
    gaps = (unit(s.flatten(2), 2) - unit(t.flatten(2), 2)).square().mean(2)
    return (rho * gaps).sum(1).mean().to(student.dtype)


def _layers(side: str, maps: Layers) -> tuple[Tensor, ...]:
    layers = tuple(maps.unbind(1)) if isinstance(maps, Tensor) and maps.ndim == 5 else maps
    if isinstance(layers, Tensor) or len(layers) == 0:
        raise TransferError(
            f"afd: wanted the {side}'s maps of several layers, a list of (n, channels, height, width) "
            f"or one tensor (n, layers, channels, height, width); got {shown(maps)}"
        )
    return tuple(layers)
