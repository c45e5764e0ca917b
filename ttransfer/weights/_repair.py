"""REPAIR: an interpolated net whose units vary as much as those of the nets it lies between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.core._types import Params
from ttransfer.weights._batch_statistics import Moments, Stop, loaded, moments, pooled, run_all
from ttransfer.weights._merging import Numbers, named, numbers, party
from ttransfer.weights._pool import members
from ttransfer.weights._routes import Tensors

__all__ = ["repair"]


def repair(
    module: nn.Module, params: Tensors, pool: Tensors, batches: Iterable[Any], *, weights: Numbers | None = None
) -> Params:
    r"""Rescale the channels of a merged net, so that they have the mean and spread of its ingredients' channels.

    .. math:: \mathbb E\, x' = \sum_i w_i\, \mathbb E\, x_i, \qquad
        \operatorname{std} x' = \sum_i w_i \operatorname{std} x_i

    for what each linear layer and convolution gives, before its activation: in the middle between two nets the units
    vary less than in either, layer by layer, until nothing is left. The correction goes into weights and biases; layers
    are taken in the order in which they run, each behind layers that are corrected already. The layer that runs last is
    left as it is, and one without a bias has its spread corrected, and its mean as that comes.

    For nets with batch norm `tt.weights.batch_statistics` does the same, and this refuses them.

    Args:
        module: the net; it is copied, and left as it is.
        params: the merged parameters and buffers.
        pool: what was merged, aligned as it was merged.
        batches: inputs, a tensor or a tuple for more than one argument; they cost a pass for each ingredient, and about
            half a pass for each layer.
        weights: w, as for `tt.weights.average`; they are divided by their sum.

    Returns:
        The parameters and buffers, with these weights and biases corrected.

    Raises:
        TransferError: for a net with batch norm, parameters that do not fit the module, or no batches.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
        >>> one = {"0.weight": torch.ones(1, 1), "0.bias": torch.zeros(1)}
        >>> one |= {"2.weight": torch.ones(1, 1), "2.bias": torch.zeros(1)}
        >>> other = {**one, "0.weight": -torch.ones(1, 1) / 2}
        >>> both = tt.weights.pool(a=one, b=other)
        >>> soup = tt.weights.average().apply(both, {})
        >>> soup["0.weight"], tt.weights.repair(net, soup, both, [torch.tensor([[-1.0], [1.0]])])["0.weight"]
        (tensor([[0.2500]]), tensor([[0.7500]]))

    References:
        Keller Jordan, Hanie Sedghi, Olga Saukh, Rahim Entezari, Behnam Neyshabur. REPAIR: REnormalizing Permuted
        Activations for Interpolation Repair. 2023.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise TransferError(f"repair: {name!r} is a batch norm, which does this: use tt.weights.batch_statistics")
    given = list(batches)
    if not given:
        raise TransferError("repair: there are no batches")
    who = party("repair", pool, names=named(weights) or tuple(members("repair", pool)))
    each = members("repair", pool)
    goals = [_watched(loaded("repair", module, each[name]), given) for name in who.names]
    net = loaded("repair", module, params)
    order = list(_watched(net, given[:1]))
    layers = dict(net.named_modules())
    new = dict(params)
    for name in order[:-1]:
        mean, std = _goal([goal[name] for goal in goals], weights, who.names)
        now = _watched(net, given, only=name)[name]
        layer: Any = layers[name]
        spread = (now.squares / now.count).sqrt()
        factor = torch.where(spread > 0, std / torch.where(spread > 0, spread, 1), 1).to(layer.weight.dtype)
        with torch.no_grad():
            weight = layer.weight * factor.reshape(-1, *(1,) * (layer.weight.ndim - 1))
            layer.weight = nn.Parameter(weight)
            new[f"{name}.weight".lstrip(".")] = weight.detach()
            if layer.bias is not None:
                bias = ((layer.bias - now.mean) * factor + mean).to(layer.bias.dtype)
                layer.bias = nn.Parameter(bias)
                new[f"{name}.bias".lstrip(".")] = bias.detach()
    return new


def _goal(of: list[Moments], weights: Numbers | None, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    means = torch.stack([one.mean for one in of])
    stds = torch.stack([(one.squares / one.count).sqrt() for one in of])
    w = numbers("repair", 1.0 if weights is None else weights, names, means)
    w = w / w.sum()
    return torch.tensordot(w, means, 1), torch.tensordot(w, stds, 1)


def _watched(net: nn.Module, batches: list[Any], only: str | None = None) -> dict[str, Moments]:
    """The moments of what layers give, in the order in which they run; of one alone if it is named."""
    found: dict[str, Moments] = {}

    def watch(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            axis = -1 if isinstance(layer, nn.Linear) else 1
            found[name] = pooled(found.get(name), moments(out, axis))
            if name == only:
                raise Stop

        return hook

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [
        layer.register_forward_hook(watch(name, layer))
        for name, layer in net.named_modules()
        if isinstance(layer, kinds) and only in (None, name)
    ]
    run_all(net, batches)
    for hook in hooks:
        hook.remove()
    return found
