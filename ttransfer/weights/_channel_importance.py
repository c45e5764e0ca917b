"""Which channels matter: a number for each, and the largest of them."""

from __future__ import annotations

from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.weights._groups import Group, checked
from ttransfer.weights._routes import Tensors

__all__ = ["channel_importance", "most_important"]


def channel_importance(params: Tensors, group: Group, *, p: float = 2.0) -> Tensor:
    r"""The norm of what each channel has in the tensors of its group, buffers aside.

    .. math:: s_c = \Bigl(\sum_{a} \sum_{i \in a(c)} \sum_{\text{rest}} |W_a[i, \cdot]|^p\Bigr)^{1/p}

    Args:
        params: a state dict or parameters; running statistics in it, and integers, do not count.
        group: a(c) are the entries that its axis a has of channel c.
        p: of the norm: 1 is that of Li et al., though over all tensors of the group instead of one.

    Returns:
        (channels,), in the params' dtype and differentiable.

    Raises:
        TransferError: for params that are not of the group's network, or a group without parameters.

    Example:
        >>> import torch, ttransfer as tt
        >>> rows = torch.arange(2)[:, None]
        >>> hidden = tt.weights.Group((tt.weights.Axis("up", 0, rows), tt.weights.Axis("down", 1, rows)))
        >>> src = {"up": torch.tensor([[3.0], [0.0]]), "down": torch.tensor([[4.0, 1.0]])}
        >>> tt.weights.channel_importance(src, hidden)
        tensor([5., 1.])

    References:
        Li, Hao, Kadav, Asim, Durdanovic, Igor, Samet, Hanan, Graf, Hans Peter. Pruning Filters for Efficient
        ConvNets. 2017.
        Fang, Gongfan, Ma, Xinyin, Song, Mingli, Mi, Michael Bi, Wang, Xinchao. DepGraph: Towards Any Structural
        Pruning. 2023.
    """
    total: Tensor | None = None
    for axis in group.axes:
        x = checked("channel_importance", axis, params)
        if not x.is_floating_point() or axis.name.rpartition(".")[2] in ("running_mean", "running_var"):
            continue
        index = axis.index.to(x.device)
        each = x.movedim(axis.axis, 0)[index.reshape(-1)].abs().pow(p).reshape(len(index), -1).sum(1)
        total = each if total is None else total + each
    if total is None:
        raise TransferError("channel_importance: the group has no parameters")
    return total.pow(1 / p)


def most_important(importance: Tensor, keep: float | int) -> Tensor:
    """The numbers of the largest, in ascending order; of equals, the first.

    Args:
        importance: (channels,).
        keep: how many: an int, or a float for that share of them, rounded, and one at least.

    Returns:
        (kept,) int64.

    Raises:
        TransferError: for more than there are, or none.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.weights.most_important(torch.tensor([5.0, 1.0, 3.0]), 2)
        tensor([0, 2])
        >>> tt.weights.most_important(torch.tensor([5.0, 1.0, 3.0]), 0.25)
        tensor([0])
    """
    count = max(1, round(keep * len(importance))) if isinstance(keep, float) else keep
    if not 0 < count <= len(importance):
        raise TransferError(f"most_important: of {len(importance)} channels {keep!r} cannot be kept")
    return importance.argsort(descending=True, stable=True)[:count].sort().values
