"""REPAIR: an interpolated net whose units vary as much as those of the nets it lies between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.core._types import Params
from ttransfer.weights._batch_statistics import Moments, Stop, batches_of, loaded, moments, pooled, run_all
from ttransfer.weights._folded import TRANSPOSED
from ttransfer.weights._merging import Numbers, named, numbers, party
from ttransfer.weights._pool import members
from ttransfer.weights._routes import Tensors

__all__ = ["repair"]

_ROOM = 1e-3  # of the largest spread


def repair(
    module: nn.Module, params: Tensors, pool: Tensors, batches: Iterable[Any], *, weights: Numbers | None = None
) -> Params:
    r"""Rescale the channels of a merged net, so that they have the mean and spread of its ingredients' channels.

    .. math:: \mathbb E\, x' = \sum_i w_i\, \mathbb E\, x_i, \qquad
        \operatorname{std} x' = \sum_i w_i \operatorname{std} x_i

    for what each linear layer and convolution gives, before its activation: in the middle between two nets the units
    vary less than in either, layer by layer, until nothing is left. The correction goes into weights and biases; layers
    are taken in the order in which they run, each behind layers that are corrected already. The layer that runs last is
    left as it is, and one without a bias has its spread corrected, and its mean as that comes. A layer that runs more
    than once, as in a net for pairs, has the mean and spread of all its calls together.

    For nets with batch norm `tt.weights.batch_statistics` does the same, and this refuses them.

    Args:
        module: the net; it is copied, and left as it is.
        params: the merged parameters and buffers.
        pool: what was merged, aligned as it was merged.
        batches: inputs, a tensor or a tuple for more than one argument; a tensor in place of a list of them is one
            batch. They cost a pass for each ingredient, and about half a pass for each layer.
        weights: w, as for `tt.weights.average`; they are divided by their sum.

    Returns:
        The parameters and buffers, with these weights and biases corrected.

    Raises:
        TransferError: for a net with batch norm, parameters that do not fit the module, or no batches; for a layer
            whose weight is another's too, or computed, or that is given what it made itself.

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
    given = list(batches_of("repair", batches))
    if not given:
        raise TransferError("repair: there are no batches")
    who = party("repair", pool, names=named(weights))
    each = members("repair", pool)
    goals = [_watched(loaded("repair", module, each[name]), given)[0] for name in who.names]
    net = loaded("repair", module, params)
    calls = _watched(net, given[:1])[1]
    layers = dict(net.named_modules())
    last = calls[-1] if calls else ""
    goal = {name: _goal([one[name] for one in goals], weights, who.names) for name in calls if name != last}
    new = dict(params)
    for name, (mean, std) in goal.items():
        alone = calls.count(name) == 1
        now = _watched(net, given, only=name, stop=alone)[0][name]
        layer: Any = layers[name]
        keys = _keys(module, name)
        spread = (now.squares / now.count).sqrt()
        factor = torch.where(spread > 0, std / torch.where(spread > 0, spread, 1), 1).to(layer.weight.dtype)
        with torch.no_grad():
            layer.weight = nn.Parameter(layer.weight * _beside(factor, layer))
            if layer.bias is not None:
                layer.bias = nn.Parameter(((layer.bias - now.mean) * factor + mean).to(layer.bias.dtype))
        new |= {f"{key}{leaf}": x.detach() for key in keys for leaf, x in layer.named_parameters(recurse=False)}
    again = {name: calls.count(name) for name in goal if calls.count(name) > 1}
    if again:
        _refuse_what_feeds_itself(_watched(net, given)[0], goal, again)
    return new


def _keys(module: nn.Module, name: str) -> list[str]:
    """What a layer's parameters are called, up to the last part, under all of its names.

    Raises:
        TransferError: for parameters that are another layer's too, or are computed.
    """
    layer: Any = module.get_submodule(name)
    mine = {id(x): f"{name}.{leaf}".lstrip(".") for leaf, x in layer.named_parameters(recurse=False)}
    if id(layer.weight) not in mine:
        raise TransferError(f"repair: the weight of {name!r} is computed, no parameter, and cannot be corrected")
    for other, part in module.named_modules():
        for leaf, x in part.named_parameters(recurse=False):
            if part is not layer and id(x) in mine:
                raise TransferError(
                    f"repair: {mine[id(x)]!r} is {other + '.' + leaf!r} too, and what is right for the one is not for "
                    "the other; untie them"
                )
    names = [one for one, part in module.named_modules(remove_duplicate=False) if part is layer]
    return [f"{one}." if one else "" for one in names]


def _beside(factor: Tensor, layer: Any) -> Tensor:
    """A number for each channel, where a layer's weight makes it."""
    rest = (1,) * (layer.weight.ndim - 2)
    if not isinstance(layer, TRANSPOSED):
        return factor.reshape(-1, 1, *rest)
    rows = layer.weight.shape[0] // layer.groups
    return factor.reshape(layer.groups, -1).repeat_interleave(rows, 0).reshape(*layer.weight.shape[:2], *rest)


def _refuse_what_feeds_itself(
    now: dict[str, Moments], goal: dict[str, tuple[Tensor, Tensor]], calls: dict[str, int]
) -> None:
    for name, count in calls.items():
        std = (now[name].squares / now[name].count).sqrt()
        wanted = torch.where(std > 0, goal[name][1], 0)
        if (std - wanted).abs().max() > _ROOM * wanted.max():
            raise TransferError(
                f"repair: {name!r} runs {count} times in a forward, and is given what it made itself, so that no "
                "correction is right for all of them"
            )


def _goal(of: list[Moments], weights: Numbers | None, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    means = torch.stack([one.mean for one in of])
    stds = torch.stack([(one.squares / one.count).sqrt() for one in of])
    w = numbers("repair", 1.0 if weights is None else weights, names, means)
    w = w / w.sum()
    return torch.tensordot(w, means, 1), torch.tensordot(w, stds, 1)


def _watched(
    net: nn.Module, batches: list[Any], only: str | None = None, *, stop: bool = False
) -> tuple[dict[str, Moments], list[str]]:
    """The moments of what layers give, or of one alone, over all of their calls; and whose calls there were, in order.

    After a call of one alone nothing more need run, if it has no other.
    """
    found: dict[str, Moments] = {}
    calls: list[str] = []

    def watch(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            axis = -1 if isinstance(layer, nn.Linear) else out.ndim - len(cast(Any, layer).kernel_size) - 1
            found[name] = pooled(found.get(name), moments(out, axis))
            calls.append(name)
            if stop:
                raise Stop

        return hook

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
    hooks = [
        layer.register_forward_hook(watch(name, layer))
        for name, layer in net.named_modules()
        if isinstance(layer, kinds) and only in (None, name)
    ]
    run_all(net, batches)
    for hook in hooks:
        hook.remove()
    return found, calls
