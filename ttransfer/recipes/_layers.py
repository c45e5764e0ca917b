"""The layers of a net in order: for rates that fall with depth, and for what trains when."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from ttransfer._errors import TransferError, nearest
from ttransfer.core import _tree as tree

__all__ = ["Layers", "as_pattern", "last", "layers"]

Layers = dict[str, tuple[str, ...]]
"""name of a layer -> names of its parameters, from the input to the output."""


def layers(model: nn.Module, groups: Sequence[str] | Mapping[str, str] | None = None) -> Layers:
    """Sort a model's parameters into layers, from the input to the output.

    Args:
        model: any module. Its parts count in the order of their definition.
        groups: regular expressions for whole parameter names, in order, of which the first that matches decides; or
            name -> expression. None makes a layer of each direct part, and of each block where a part is a sequence of
            blocks (`layer1.0`, `blocks.3`); parameters of the model itself, such as a class token, join the first.
            A norm between parts is then a layer of its own, `norm` of a vision transformer or `bn1` of a ResNet, and
            `tt.recipes.layerwise` takes a step of the decay for it. Groups that count it with its neighbour say so:
            ``{"stem": r"(conv1|bn1)\\..*", ...}``; for a timm model `ttransfer_ext.timm.layer_groups` makes timm's.

    Returns:
        Layers without parameters are left out.

    Raises:
        TransferError: for a parameter that no group takes, a group that takes none, or a model without parameters.

    Example:
        >>> import torch, ttransfer as tt
        >>> from collections import OrderedDict
        >>> block = lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> body = torch.nn.Sequential(block(), block())
        >>> net = torch.nn.Sequential(OrderedDict(stem=torch.nn.Linear(2, 2), body=body))
        >>> {layer: len(names) for layer, names in tt.recipes.layers(net).items()}
        {'stem': 2, 'body.0': 2, 'body.1': 2}
    """
    names = [name for name, _ in model.named_parameters()]
    if not names:
        raise TransferError(f"layers: {type(model).__name__} has no parameters")
    if groups is None:
        found = _by_parts(model, names)
    else:
        found = _by_groups(dict(groups) if isinstance(groups, Mapping) else {p: p for p in groups}, names)
    return {layer: tuple(own) for layer, own in found.items() if own}


def _by_groups(groups: Mapping[str, str], names: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {layer: [] for layer in groups}
    for name in names:
        layer = next((layer for layer, pattern in groups.items() if tree.matches(pattern, name)), None)
        if layer is None:
            raise TransferError(f"layers: parameter {name!r} is in no group; a last group '.*' takes the rest")
        found[layer].append(name)
    for layer, own in found.items():
        if not own:
            raise TransferError(f"layers: group {layer!r} takes no parameter{nearest(groups[layer], names)}")
    return found


def _by_parts(model: nn.Module, names: list[str]) -> dict[str, list[str]]:
    places = list(_places(model, ""))
    found: dict[str, list[str]] = {place: [] for place in places}
    loose: list[str] = []
    for name in names:
        home = next((place for place in places if name.startswith(f"{place}.")), None)
        (loose if home is None else found[home]).append(name)
    first = next((place for place in places if found[place]), None)
    if first is None:
        return {"all": loose}
    found[first] = [*loose, *found[first]]
    return found


def _places(module: nn.Module, prefix: str) -> list[str]:
    found: list[str] = []
    for name, child in module.named_children():
        # A sequence of blocks is as many layers; a sequence of single operations is one.
        blocks = isinstance(child, (nn.Sequential, nn.ModuleList)) and any(list(g.children()) for g in child)
        found += _places(child, f"{prefix}{name}.") if blocks else [f"{prefix}{name}"]
    return found


def last(layers: Layers, count: int = 1) -> str:
    """Write a pattern for the parameters of the last layers: what a linear probe, or partial fine-tuning, trains.

    Args:
        layers: as `tt.recipes.layers` gives them.
        count: how many, from the output.

    Returns:
        A regular expression for whole names, for `trainable`.

    Raises:
        TransferError: if there are not so many.

    Example:
        >>> import ttransfer as tt
        >>> tt.recipes.last({"stem": ("stem.weight",), "fc": ("fc.weight", "fc.bias")})
        'fc\\\\.weight|fc\\\\.bias'
    """
    if not 1 <= count <= len(layers):
        raise TransferError(f"last: wanted from 1 to {len(layers)} layers, got {count}; there are {', '.join(layers)}")
    return as_pattern([name for own in list(layers.values())[-count:] for name in own])


def as_pattern(names: Sequence[str], prefix: str = "") -> str:
    """Write a regular expression for these names and no others.

    Example:
        >>> as_pattern(["fc.bias"], "net.")
        'net\\\\.fc\\\\.bias'
    """
    return "|".join(re.escape(prefix + name) for name in names)
