"""Fusion by optimal transport: nets of different widths, whose channels are matched softly or one to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.weights._groups import Group
from ttransfer.weights._routes import Tensors
from ttransfer.weights._transport import alike, carried, moves_of
from ttransfer.weights._weight_matching import assignment, entries_of, free_of, weights_of

__all__ = ["ot_alignment"]


def ot_alignment(
    a: Tensors, b: Tensors, groups: Sequence[Group], others: Sequence[Group] | None = None, *, reg: float = 0.0
) -> dict[int, Tensor]:
    r"""Say of which channels of `a` each channel of `b` is made, layer by layer from the input on.

    .. math:: T^\ell = \operatorname{OT}(\alpha, \beta, D^\ell), \qquad
        D^\ell_{ij} = \lVert \hat w^a_i - w^b_j \rVert_2, \qquad
        \hat W^a = W^a\, T^{\ell - 1} \operatorname{diag}(1 / \beta)

    with uniform :math:`\alpha, \beta`: channels are near when the weights that make them are, once those of `a` are
    written in terms of the channels of `b` that they read. Biases, and scales of norms, are among these weights; what
    batch norm has counted is not.

    Args:
        a: parameters of the net to carry over.
        b: those of the net that it goes to, perhaps of other widths.
        groups: of `a`, by `tt.weights.channel_groups`. Of groups that overlap, as heads and their dimensions do, the
            first is matched.
        others: of `b`, one for each of `groups`; None if the widths are equal.
        reg: entropic regularisation, in units of the mean distance: above 0 channels are mixed softly.

    Returns:
        Index of each free group -> (channels of `b`, channels of `a`), rows that sum to 1: for
        `tt.weights.transport_channels`.

    Raises:
        TransferError: if groups do not go together, a tensor is not there or not finite, no order of the groups starts
            at the input, or the solver is not installed: POT, or scipy where the widths are equal and `reg` is 0.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> groups = tt.weights.channel_groups(net, torch.ones(1, 2))
        >>> a = net.state_dict()
        >>> free = next(i for i, group in enumerate(groups) if not group.fixed)
        >>> b = tt.weights.permute_channels(groups, {free: [2, 0, 1]}).apply(a, {})
        >>> new = tt.weights.transport_channels(groups, tt.weights.ot_alignment(a, b, groups)).apply(a, {})
        >>> all(torch.allclose(new[name], b[name]) for name in b)
        True

    References:
        Sidak Pal Singh, Martin Jaggi. Model Fusion via Optimal Transport. 2020.
    """
    theirs = groups if others is None else others
    alike("ot_alignment", groups, theirs)
    here, there = weights_of("ot_alignment", a, groups), weights_of("ot_alignment", b, theirs)
    free = free_of(groups)
    reading: dict[str, set[int]] = {}
    for i in free:
        for axis in groups[i].axes:
            if axis.reads:
                reading.setdefault(axis.name, set()).add(i)
    found: dict[int, Tensor] = {}
    while left := [i for i in free if i not in found]:
        ready = {i: _ready(groups[i], reading, set(found)) for i in left}
        # One whose makers are all known, else one of which at least some are: residual sums come back to themselves.
        whole = [i for i in left if all(ready[i].values())]
        some = [i for i in left if any(ready[i].values())]
        if not some:
            raise TransferError(
                f"ot_alignment: no order starts at the input: what makes {groups[left[0]].axes[0].name!r} reads "
                "channels that are not known before"
            )
        i = (whole or some)[0]
        moves = moves_of("ot_alignment", groups, theirs, found, found)
        rows: list[tuple[Tensor, Tensor]] = []
        for one, two in zip(groups[i].axes, theirs[i].axes, strict=True):
            if one.name in here and ready[i].get(one.name):
                mine = carried(here[one.name], moves.get(one.name, ()))
                rows.append((entries_of(mine, one), entries_of(there[one.name], two)))
        x, y = (torch.cat(side, 1) for side in zip(*rows, strict=True))
        # Exact for equal rows, where the usual shortcut by products leaves half of the digits.
        found[i] = _plan(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist"), reg)
    return found


def _ready(group: Group, reading: dict[str, set[int]], known: set[int]) -> dict[str, bool]:
    """Tensors that make a group's channels -> whether all that they read is known; all tensors if none makes them."""
    makers = [axis.name for axis in group.axes if not axis.reads]
    return {name: reading.get(name, set()) <= known for name in makers}


def _plan(cost: Tensor, reg: float) -> Tensor:
    n, m = cost.shape
    if n == m and not reg:
        new = torch.zeros(m, n, dtype=cost.dtype)
        new[assignment("ot_alignment", -cost), torch.arange(n)] = 1.0
        return new
    try:
        import ot
    except ImportError as error:
        raise TransferError("ot_alignment: transport is solved by POT: pip install POT") from error
    solver: Any = ot
    alpha, beta = (torch.full((k,), 1 / k, dtype=cost.dtype) for k in (n, m))
    if reg:
        scale = max(reg * float(cost.mean()), 1e-300)
        plan = solver.sinkhorn(alpha, beta, cost, scale, method="sinkhorn_log", numItermax=10000, stopThr=1e-12)
    else:
        plan = solver.emd(alpha, beta, cost)
    return plan.mT / plan.sum(0)[:, None]
