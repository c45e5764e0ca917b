"""A torchvision model's layers in order."""

from __future__ import annotations

import re

from torch import nn

from ttransfer import TransferError
from ttransfer.recipes import Layers
from ttransfer_ext._needed import needed

__all__ = ["layer_groups"]

# Class -> expressions for the beginning of a parameter's name, of which the first that matches decides, and the layer:
# a name, or "<" for what joins the layer before, or ">" for what joins the one behind. The rest is the head.
_FAMILIES: dict[str, tuple[tuple[str, str], ...]] = {
    "ResNet": ((r"(?:conv1|bn1)\.", "stem"), (r"(layer\d+\.\d+)\.", r"\1")),
    "VisionTransformer": (
        (r"class_token|conv_proj\.|encoder\.pos_embedding", "stem"),
        (r"(encoder\.layers\.\w+)\.", r"\1"),
        (r"encoder\.ln\.", "<"),
    ),
    "ConvNeXt": (
        (r"features\.0\.", "stem"),
        (r"(features\.\d*[13579]\.\d+)\.", r"\1"),
        (r"features\.", ">"),
    ),
    "EfficientNet": (
        (r"features\.0\.", "stem"),
        (r"(features\.\d+\.\d+)\.block\.", r"\1"),
        (r"features\.", "<"),
    ),
    "MobileNetV2": ((r"features\.0\.", "stem"), (r"(features\.\d+)\.conv\.", r"\1"), (r"features\.", "<")),
    "MobileNetV3": ((r"features\.0\.", "stem"), (r"(features\.\d+)\.block\.", r"\1"), (r"features\.", "<")),
    "SwinTransformer": (
        (r"features\.0\.", "stem"),
        (r"(features\.\d*[13579]\.\d+)\.", r"\1"),
        (r"features\.", ">"),
        (r"norm\.", "<"),
    ),
}


def layer_groups(model: nn.Module) -> Layers:
    """Sort a torchvision model's parameters into layers, from the input to the output.

    A layer for each block, as timm has them for the same nets: what lies between two stages is of the block behind,
    a norm or convolution after the last block is of that block. They are for `tt.recipes.layerwise`, which gives
    deeper layers smaller steps, and for `tt.recipes.last`.

    Args:
        model: a ResNet, VisionTransformer, ConvNeXt, EfficientNet, MobileNetV2, MobileNetV3 or SwinTransformer.

    Returns:
        name -> names of parameters, the stem first and the head last.

    Raises:
        TransferError: for another model.

    Example:
        >>> import ttransfer as tt
        >>> from ttransfer_ext.torchvision import layer_groups, model
        >>> layers = layer_groups(model("resnet18"))
        >>> list(layers)[:3], list(layers)[-1], layers["head"]
        (['stem', 'layer1.0', 'layer1.1'], 'head', ('fc.weight', 'fc.bias'))
        >>> opt = tt.recipes.layerwise(tt.optim.adamw(1e-3), layers, 0.75, net="student")
    """
    models = needed("torchvision.models", "vision")
    rules = next((rules for name, rules in _FAMILIES.items() if isinstance(model, getattr(models, name))), None)
    if rules is None:
        raise TransferError(
            f"torchvision.layer_groups: wanted one of torchvision's {', '.join(_FAMILIES)}, got "
            f"{type(model).__module__}.{type(model).__name__}; ttransfer_ext.timm has layer_groups for timm's, and "
            "tt.recipes.layers takes any model"
        )
    found: dict[str, list[str]] = {}
    waiting: list[str] = []
    for name, _ in model.named_parameters():
        layer = next((hit.expand(layer) for rule, layer in rules if (hit := re.match(rule, name))), "head")
        if layer == ">":
            waiting.append(name)
            continue
        home = found.setdefault(layer, []) if layer != "<" else found[next(reversed(found))]
        home += [*waiting, name]
        waiting = []
    return {layer: tuple(names) for layer, names in found.items()}
