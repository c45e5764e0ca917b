"""A timm model's layers in order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ttransfer import TransferError
from ttransfer.recipes import Layers
from ttransfer_ext._needed import needed

__all__ = ["layer_groups"]


def layer_groups(model: nn.Module, *, coarse: bool = False) -> Layers:
    """Sort a timm model's parameters into layers, from the input to the output, by its own `group_matcher`.

    They are for `tt.recipes.layerwise`, which gives deeper layers smaller steps, and for `tt.recipes.last`. With
    these layers the rates are those of timm's `param_groups_layer_decay`.

    Args:
        model: from `model` or `timm.create_model`.
        coarse: a layer for each stage, not for each block.

    Returns:
        name -> names of parameters, the stem first and the head last. A norm after the last block is of its layer.

    Raises:
        TransferError: for a model that does not say how its parameters are grouped.

    Example:
        >>> import ttransfer as tt
        >>> from ttransfer_ext.timm import layer_groups, model
        >>> layers = layer_groups(model("resnet18"))
        >>> list(layers)[:3], list(layers)[-1], layers["head"]
        (['stem', 'layer1.0', 'layer1.1'], 'head', ('fc.weight', 'fc.bias'))
        >>> opt = tt.recipes.layerwise(tt.optim.adamw(1e-3), layers, 0.75, net="student")

    References:
        Hangbo Bao, Li Dong, Songhao Piao, Furu Wei. BEiT: BERT Pre-Training of Image Transformers. 2021.
    """
    timm = needed("timm.models", "vision")
    of = getattr(model, "group_matcher", None)
    if not callable(of):
        raise TransferError(
            f"timm.layer_groups: {type(model).__name__} has no group_matcher; tt.recipes.layers takes any model"
        )
    matcher: Any = of(coarse=coarse)
    place = timm.group_parameters(model, matcher, reverse=True)
    found: dict[int, list[str]] = {i: [] for i in range(max(place.values(), default=-1) + 1)}
    for name, _ in model.named_parameters():
        found[place[name]].append(name)
    layers: Layers = {}
    for i, names in found.items():
        title = _title(matcher, names) or f"layer{i}"
        layers[title if title not in layers else f"{title} ({i})"] = tuple(names)
    return layers


def _title(matcher: Any, names: list[str]) -> str:
    """What the last parameter of a layer is matched as: a block's own name, or that of the group."""
    if not isinstance(matcher, Mapping):
        return ""
    title = "head"
    for name in names:
        for group, pattern, suffix in _specs(matcher):
            if (found := re.match(pattern, name)) is not None:
                # A suffix that large is for what joins the layer before.
                if not (suffix and suffix[-1] > 1000):
                    title = found[0] if found.groups() else group
                break
    return title


def _specs(matcher: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for group, spec in matcher.items():
        for one in [(spec, None)] if isinstance(spec, str) else spec or ():
            yield group, one[0], one[1]
