"""Smaller steps for the layers that lie deeper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer._errors import TransferError, nearest
from ttransfer.core._types import Optimizer, Scalar, Tree
from ttransfer.optim._leaf import cast
from ttransfer.optim._names import declare

__all__ = ["layer_decay"]


def layer_decay(layers: Sequence[str], decay: Scalar = 0.75) -> Optimizer:
    r"""Scale the updates of a layer by how far it lies from the output: layer-wise learning rate decay.

    .. math:: u_\ell \leftarrow d^{\,L - \ell} u_\ell, \qquad \ell = 0, \dots, L

    It stands last in a chain, after a rule with a learning rate, and is then the learning rate times d^(L - l) for
    each layer, weight decay included. d is one number of the state: it can be swept.

    Args:
        layers: regular expressions for whole dotted names, from the input to the output. The first that matches
            decides, so ``".*"`` at the end takes the rest.
        decay: the factor d from a layer to the one before.

    Returns:
        An optimizer with the number "decay" and no state.

    Raises:
        TransferError: for no layers, or a `decay` that is no number; at `init`, if a parameter matches no layer, or a
            layer is the first match of no parameter.

    Example:
        >>> import torch, ttransfer as tt
        >>> opt = tt.optim.chain(tt.optim.sgd(1.0), tt.optim.layer_decay([".*conv.*", ".*fc.*"], 0.5))
        >>> params = {"net": {"conv.bias": torch.ones(1), "fc.bias": torch.ones(1)}}
        >>> opt.update(params, opt.init(params), params, tt.optim.hyper_at(opt))[0]
        {'net': {'conv.bias': tensor([-0.5000]), 'fc.bias': tensor([-1.])}}

    References:
        Kevin Clark, Minh-Thang Luong, Quoc V. Le, Christopher D. Manning. ELECTRA: Pre-training Text Encoders as
        Discriminators Rather Than Generators. 2020.
        Hangbo Bao, Li Dong, Songhao Piao, Furu Wei. BEiT: BERT Pre-Training of Image Transformers. 2021.
    """
    patterns = (layers,) if isinstance(layers, str) else tuple(layers)
    if not patterns:
        raise TransferError("optim.layer_decay: no layers")

    def depths(params: Tree) -> dict[str, int]:
        found: dict[str, int] = {}
        paths = tuple(tree.paths(params))
        for path, place in zip(paths, tree.first_match(patterns, paths), strict=True):
            if place < 0:
                raise TransferError(
                    f"optim.layer_decay: parameter {path!r} is in none of the layers {list(patterns)}; a last pattern "
                    "'.*' takes the rest"
                )
            found[path] = len(patterns) - 1 - place
        return found

    def init(params: Tree) -> Tree:
        found = set(depths(params).values())
        for i, pattern in enumerate(patterns):
            # A layer that is frozen whole has no parameters here; one that an earlier pattern hides is a slip.
            if len(patterns) - 1 - i not in found and any(tree.matches(pattern, path) for path in tree.paths(params)):
                raise TransferError(
                    f"optim.layer_decay: layer {pattern!r} gets no parameter that an earlier layer leaves"
                    f"{nearest(pattern, tree.paths(params))}"
                )
        return {}

    def update(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        found = depths(params)
        slopes = tree.paths(grads)
        scales = {depth: hyper["decay"] ** depth for depth in set(found.values())}
        scaled = [
            cast(slopes[path], slopes[path]) * scales[depth].to(slopes[path].dtype) for path, depth in found.items()
        ]
        return tree.unflatten(grads, scaled), state

    return Optimizer(init, update, declare("layer_decay", decay=decay))
