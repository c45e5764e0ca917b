"""Graph matching: channels are nodes, weights are edges, and the matching is relaxed and then sharpened."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.weights._groups import Axis, Group
from ttransfer.weights._routes import Tensors
from ttransfer.weights._weight_matching import assignment, both_of, free_of

__all__ = ["graph_matching"]


def graph_matching(
    a: Tensors,
    b: Tensors,
    groups: Sequence[Group],
    *,
    temperature: float = 1.0,
    decay: float = 0.8,
    least: float = 0.01,
    rounds: int = 20,
) -> dict[int, Tensor]:
    r"""Find which channel of `b` plays the part of each channel of `a`, by the affinity of single weights.

    .. math:: \max_X\; \sum_{\text{edges}} X_{ik} X_{jl}\, \exp(-\lVert w^a_{ij} - w^b_{kl} \rVert_2)
        + \sum_{\text{nodes}} X_{ik} \exp(-\lvert b^a_i - b^b_k \rvert)

    a quadratic assignment problem over all layers, by graduated assignment: the matching of each group, at first soft
    and uniform, is made doubly stochastic from the slope of the objective, :math:`X \leftarrow
    \operatorname{Sinkhorn}(\exp(\nabla_X / \tau))`, layer after layer, while :math:`\tau` falls; in the end it is a
    permutation. An edge is a weight, a kernel for a convolution. It costs the square of a layer's weights, so that it
    is for small nets; `tt.weights.weight_matching` is for large ones.

    Only two nets are matched: the paper's matching of many at once is not here.

    Args:
        a: parameters of the net that stays.
        b: those of the net to permute, of equal names and shapes.
        groups: of `tt.weights.channel_groups`; those that are fixed stay as they are. Of groups that overlap, the first
            is matched.
        temperature: tau at the start, in units of the mean slope's spread.
        decay: what tau is multiplied by after each pass over the groups.
        least: where tau ends.
        rounds: of Sinkhorn's normalisation of rows and columns.

    Returns:
        Index of each free group -> (channels,): the channel of `b` that comes to each place, for
        `tt.weights.permute_channels`.

    Raises:
        TransferError: if a tensor that a group names is not there, differs in shape or is not finite, for a `decay`
            that is not between 0 and 1, or if scipy is not installed.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> groups = tt.weights.channel_groups(net, torch.ones(1, 2))
        >>> a = net.state_dict()
        >>> free = next(i for i, group in enumerate(groups) if not group.fixed)
        >>> b = tt.weights.permute_channels(groups, {free: [2, 0, 1]}).apply(a, {})
        >>> tt.weights.graph_matching(a, b, groups)[free]
        tensor([1, 2, 0])

    References:
        Chang Liu, Chenfei Lou, Runzhong Wang, Alan Yuhan Xi, Li Shen, Junchi Yan. Deep Neural Network Fusion via Graph
        Matching with Applications to Model Ensemble and Federated Learning. 2022.
        Steven Gold, Anand Rangarajan. A graduated assignment algorithm for graph matching. 1996.
    """
    if not 0 < decay < 1 or not 0 < least <= temperature:
        raise TransferError(
            f"graph_matching: wanted 0 < decay < 1 and 0 < least <= temperature, got {decay}, {least} and {temperature}"
        )
    here, there = both_of("graph_matching", a, b, groups)
    free = free_of(groups)
    soft = {i: torch.full((groups[i].size,) * 2, 1 / groups[i].size, dtype=torch.float64) for i in free}
    on: dict[str, list[tuple[int, Axis]]] = {}
    for i in free:
        for axis in groups[i].axes:
            if axis.name in here:
                on.setdefault(axis.name, []).append((i, axis))
    tau = temperature
    while tau >= least:
        for i in free:
            slope = torch.zeros_like(soft[i])
            for axis in groups[i].axes:
                if axis.name in here:
                    others = [(k, other) for k, other in on[axis.name] if other is not axis]
                    slope += _slope(here[axis.name], there[axis.name], axis, others, soft)
            soft[i] = _doubly_stochastic(slope / (tau * slope.std().clamp(min=1e-12)), rounds)
        tau *= decay
    return {i: assignment("graph_matching", x) for i, x in soft.items()}


def _slope(x: Tensor, y: Tensor, axis: Axis, others: Sequence[tuple[int, Axis]], soft: dict[int, Tensor]) -> Tensor:
    """How much the objective rises with each match, given how the channels at the tensor's other end are matched."""
    if not others:
        # Fixed at the other end, or a node: each entry is an edge of its own that is matched already.
        one, two = _edges(x, axis), _edges(y, axis)
        return (-_distances(one, two)).exp().sum(2)
    (k, other), *more = others
    if more:
        raise TransferError(f"graph_matching: {axis.name!r} has channels on {len(others) + 1} axes, wanted 2 at most")
    one, two = (_pairs(t, axis, other) for t in (x, y))
    rows = []
    for each in one:  # one channel at a time: all at once would take the square of the weights in memory
        near = (-(each[None, :, None] - two[:, None]).square().sum(-1).sqrt()).exp()  # (channels of b, a's, b's)
        rows.append((near * soft[k]).sum((1, 2)))
    return torch.stack(rows)


def _edges(x: Tensor, axis: Axis) -> Tensor:
    """(channels, edges, entries of each): what ends in a channel from places that are fixed."""
    rows = x.movedim(axis.axis, 0)[axis.index.flatten()].reshape(*axis.index.shape, -1)
    if x.ndim == 1:
        return rows.reshape(len(rows), 1, -1)
    kernel = x.shape[2:].numel()
    rows = rows.reshape(*axis.index.shape, -1, kernel)
    return rows.transpose(1, 2).reshape(len(rows), rows.shape[2], -1)


def _distances(one: Tensor, two: Tensor) -> Tensor:
    return (one[:, None] - two[None]).square().sum(-1).sqrt()


def _pairs(x: Tensor, axis: Axis, other: Axis) -> Tensor:
    """(channels, channels of the other axis, entries that are between them)."""
    first, second = axis.index.flatten(), other.index.flatten()
    x = x.movedim((axis.axis, other.axis), (0, 1))[first][:, second]
    x = x.reshape(*axis.index.shape, *other.index.shape, -1)
    return x.permute(0, 2, 1, 3, 4).reshape(len(axis.index), len(other.index), -1)


def _doubly_stochastic(logits: Tensor, rounds: int) -> Tensor:
    for _ in range(rounds):
        logits = logits - logits.logsumexp(1, keepdim=True)
        logits = logits - logits.logsumexp(0, keepdim=True)
    return logits.exp()
