"""Batch normalisation folded into the layer before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._routes import Route, Routes, Tensors, routed, spelt, taken

__all__ = ["BnPair", "fold_bn"]


class BnPair(NamedTuple):
    """What a batch norm is folded into.

    Attributes:
        layer: name of the convolution or the linear layer whose output it takes, and nobody else takes.
        eps: the batch norm's.
        transposed: the number of groups of a transposed convolution, whose weight has its outputs on the second
            axis, those of one group; 0 for all other layers.

    Example:
        >>> BnPair("conv1", eps=1e-3)
        BnPair(layer='conv1', eps=0.001, transposed=0)
    """

    layer: str
    eps: float = 1e-5
    transposed: int = 0


def fold_bn(pairs: Mapping[str, BnPair | str]) -> WeightMap:
    r"""Fold batch norms into the layers before them: the answers in eval mode are the same, and come sooner.

    .. math::
        W' = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} W, \qquad
        b' = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} (b - \mu) + \beta

    `tt.weights.bn_pairs` finds the pairs and their ε in a module, and `tt.weights.folded` makes the module that the
    result is for, without the batch norms; it is for a net that is not trained, such as a teacher.

    Args:
        pairs: name of a batch norm -> its `BnPair`, or the name of the layer alone if ε is 1e-5 (many nets have
            1e-3) and it is no transposed convolution.

    Returns:
        A `WeightMap` that gives each of these layers a bias, and no tensor of these batch norms. It computes in at
        least float32; the dtype is the layer's.

    Raises:
        TransferError: for a layer with two batch norms; at use for a layer or a batch norm that is not there, and
            shapes that do not go together.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"conv.weight": torch.ones(1, 1, 1, 1), "bn.weight": torch.tensor([3.0]), "bn.bias": torch.ones(1)}
        >>> src |= {"bn.running_mean": torch.tensor([2.0]), "bn.running_var": torch.tensor([4.0])}
        >>> new = tt.weights.fold_bn({"bn": tt.weights.BnPair("conv", eps=0.0)}).apply(src, {})
        >>> {name: x.item() for name, x in new.items()}
        {'conv.weight': 1.5, 'conv.bias': -2.0}

    Checked against: the net with its batch norms, and torch.nn.utils.fusion.
    Peers: torch.nn.utils.fusion fails in transposed convolutions with groups.

    References:
        Sergey Ioffe, Christian Szegedy. Batch Normalization: Accelerating Deep Network Training by Reducing Internal
        Covariate Shift. 2015.
    """
    every = {bn: BnPair(pair) if isinstance(pair, str) else pair for bn, pair in pairs.items()}
    layers = [pair.layer for pair in every.values()]
    if twice := [name for i, name in enumerate(layers) if name in layers[:i]]:
        raise TransferError(f"fold_bn: {twice[0]!r} has two batch norms, and goes into one alone")

    def routes(src: Tensors, like: Tensors) -> Routes:
        gone: dict[str, str] = {}
        new: dict[str, dict[str, Route]] = {}
        for bn, pair in every.items():
            gone.update({name: "folded" for name in src if name.rpartition(".")[0] == bn})
            new[f"{pair.layer}.weight"] = _folded(bn, pair, src)
        made: dict[str, Route] = {}
        for name in src:
            if name in new:
                made |= new[name]
            elif name not in gone and name not in made:
                made[name] = taken(name)
        return Routes(made, unused=gone)

    return routed(routes)


def _folded(bn: str, pair: BnPair, src: Tensors) -> dict[str, Route]:
    weight, bias = f"{pair.layer}.weight", f"{pair.layer}.bias"
    mean, var = f"{bn}.running_mean", f"{bn}.running_var"
    for name in (weight, mean, var):
        if name not in src:
            raise TransferError(f"fold_bn: the source has no {name!r}{nearest(name, src)}")
    w = src[weight]
    count = 0 if w.ndim < 2 else w.shape[1] * pair.transposed if pair.transposed else w.shape[0]
    scale = [name for name in (f"{bn}.weight",) if name in src]
    shift = [name for name in (f"{bn}.bias",) if name in src]
    before = [bias] if bias in src else []
    for name in (mean, var, *scale, *shift, *before):
        if src[name].shape != (count,):
            raise TransferError(
                f"fold_bn: {name!r} {shown(src[name])} does not go with {weight!r} {shown(w)}, which has {count} "
                "outputs"
            )
    how = f"{bn} folded in, eps {spelt(pair.eps)}"
    wide = torch.promote_types(w.dtype, torch.float32)

    def factor(var: Tensor, gamma: Tensor | None) -> Tensor:
        inverse = torch.rsqrt(var.to(wide) + pair.eps)
        return inverse if gamma is None else inverse * gamma.to(wide)

    def fold_weight(weight: Tensor, var: Tensor, *gamma: Tensor) -> Tensor:
        by = factor(var, gamma[0] if gamma else None)
        return _scaled(weight.to(wide), by, pair.transposed).to(weight.dtype)

    def fold_bias(mean: Tensor, var: Tensor, *rest: Tensor) -> Tensor:
        others = dict(zip((*scale, *shift, *before), rest, strict=True))
        gamma, beta, b = (others[names[0]] if names else None for names in (scale, shift, before))
        centred = -mean.to(wide) if b is None else b.to(wide) - mean.to(wide)
        moved = factor(var, gamma) * centred
        return (moved if beta is None else moved + beta.to(wide)).to(w.dtype)

    return {
        weight: Route((weight, var, *scale), fold_weight, how),
        bias: Route((mean, var, *scale, *shift, *before), fold_bias, how),
    }


def _scaled(weight: Tensor, by: Tensor, groups: int) -> Tensor:
    """Scale each output of a layer."""
    if not groups:
        return weight * by.reshape(-1, *(1,) * (weight.ndim - 1))
    # (in, out / groups, ...): the inputs of one group lie together, and so do the outputs.
    parts = weight.unflatten(0, (groups, -1))
    return (parts * by.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))).flatten(0, 1)
