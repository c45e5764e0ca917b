"""A merge whose numbers differ from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._by_part import divided
from ttransfer.weights._parts import Part
from ttransfer.weights._routes import titled

__all__ = ["by_layer"]


def by_layer(map: Callable[..., WeightMap], layers: Mapping[str, str | Sequence[str]], /, **numbers: Any) -> WeightMap:
    r"""Give a map other numbers in each layer.

    .. math:: \theta^l = \theta_0^l + \sum_i \lambda_i^l\, (\theta_i^l - \theta_0^l)

    is ``by_layer(task_arithmetic, layers, scale=...)`` with :math:`\lambda` (layers, checkpoints), and
    ``tt.as_reparam(functools.partial(by_layer, task_arithmetic, layers), pool, scale=...)`` learns it: by the entropy
    of predictions on unlabelled data that is AdaMerging, whose authors call each tensor a layer,
    ``{name: (name,) for name in ...}``, start at 0.3 and keep numbers from 0 to 1.

    Args:
        map: makes a map from `numbers`, such as `tt.weights.slerp`. What all layers share is given before:
            ``functools.partial(tt.weights.ties, 0.2)``.
        layers: name -> names of tensors, as `tt.recipes.layers` gives them; or name -> regular expression for whole
            names, of which the first that fits counts. A tensor that is not named, such as a running mean, goes with
            the named ones of its module, or else of the nearest module around it, if these are in one layer.
        **numbers: keyword of `map` -> a tensor (layers, ...) or a sequence, in the order of `layers`; or layer -> what
            `map` takes.

    Returns:
        A `WeightMap` as `tt.weights.by_part` gives it.

    Raises:
        TransferError: for a name in two layers, numbers of which there is not one for each layer, or that `map` does
            not take; at use, for a tensor in no layer, and as `by_part` does.

    Example:
        >>> import torch, ttransfer as tt
        >>> nets = [{"stem.weight": torch.tensor([x]), "head.weight": torch.tensor([x])} for x in (0.0, 1.0)]
        >>> pool = tt.weights.pool(base=nets[0], tuned=nets[1])
        >>> layers = {"stem": ("stem.weight",), "head": ("head.weight",)}
        >>> tt.weights.by_layer(tt.weights.wise_ft, layers, alpha=[0.25, 0.75]).apply(pool, {})
        {'stem.weight': tensor([0.2500]), 'head.weight': tensor([0.7500])}

        A function of the numbers does the same, for `as_reparam` too:

        >>> from functools import partial
        >>> learned = tt.as_reparam(partial(tt.weights.by_layer, tt.weights.wise_ft, layers), pool, alpha=[0.5, 0.5])
        >>> learned.init(torch.Generator(), {})
        {'alpha': tensor([0.5000, 0.5000])}

    References:
        Enneng Yang, Zhenyi Wang, Li Shen, Shiwei Liu, Guibing Guo, Xingwei Wang, Dacheng Tao. AdaMerging: Adaptive
        Model Merging for Multi-Task Learning. 2024.
    """
    if not isinstance(layers, Mapping):
        raise TransferError(f"by_layer: wanted layers, name -> names or a pattern, got {shown(layers)}")
    if isinstance(cast(Any, map), WeightMap):
        raise TransferError("by_layer: a map that is made already takes no numbers; give the function that makes it")
    if not callable(map):
        raise TransferError(f"by_layer: wanted a function that makes a map, such as tt.weights.slerp, got {shown(map)}")
    where: dict[str, str] = {}
    for layer, names in layers.items():
        for name in () if isinstance(names, str) else names:
            if name in where:
                raise TransferError(f"by_layer: {name!r} is in {where[name]!r} and in {layer!r}")
            where[name] = layer
    each = {keyword: _by_layer(keyword, value, tuple(layers)) for keyword, value in numbers.items()}
    parts: list[Part] = []
    for layer, names in layers.items():
        try:
            made = map(**{keyword: values[layer] for keyword, values in each.items()})
        except TypeError as error:
            raise TransferError(f"by_layer: {titled(map)}({', '.join(numbers)}): {error}") from error
        parts.append(Part(layer, names if isinstance(names, str) else tuple(names), made))
    return divided("by_layer", parts)


def _by_layer(keyword: str, value: Any, layers: tuple[str, ...]) -> dict[str, Any]:
    """A keyword's number for each layer."""
    if isinstance(value, Mapping):
        given = cast(Mapping[str, Any], value)
        for name in layers:
            if name not in given:
                raise TransferError(f"by_layer: {keyword!r} has no number for {name!r}{nearest(name, given)}")
        if extra := [name for name in given if name not in layers]:
            raise TransferError(f"by_layer: {keyword!r} has a number for {extra[0]!r}{nearest(extra[0], layers)}")
        return dict(given)
    several = (
        value.ndim > 0 if isinstance(value, Tensor) else isinstance(value, Sequence) and not isinstance(value, str)
    )
    if not several or len(value) != len(layers):
        raise TransferError(
            f"by_layer: {keyword!r} must be {len(layers)} numbers, one for each layer, got {shown(value)}; what all "
            f"layers share is given before, by functools.partial"
        )
    return {layer: value[i] for i, layer in enumerate(layers)}
