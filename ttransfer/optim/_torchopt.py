"""Optimizers of TorchOpt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer._errors import TransferError
from ttransfer.core._types import Optimizer, Tree

__all__ = ["from_torchopt"]


def from_torchopt(transformation: Any) -> Optimizer:
    """Use a gradient transformation of TorchOpt.

    Its numbers are fixed inside it, so that none can be swept or differentiated. What else it can do
    is up to it. TorchOpt 0.7.3's `adam`, `adamw`, `sgd`, `rmsprop`, `adagrad` and `adadelta` work
    eagerly, compiled on torch 2.15 (on 2.8 Dynamo cannot trace optree, which TorchOpt stands on), and
    under vmap where gradients, state and parameters are all batched, most of them slowly, with a
    warning from torch. Its `adam` corrects the bias in float32, so that it differs from ours by 1e-5.

    Args:
        transformation: what `torchopt.adam`, `torchopt.chain` and their like return: an object with
            ``init(params)`` and ``update(grads, state, params=..., inplace=...)``.

    Returns:
        An optimizer with no numbers.

    Raises:
        TransferError: if it has no `init` and `update`; at `init`, if its state holds anything but
            tensors (TorchOpt's `radam` and `adamax` count in a Python int).

    Example:
        >>> import torch, torchopt, ttransfer as tt
        >>> opt = tt.optim.from_torchopt(torchopt.adam(1e-3))
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> updates, state = opt.update(params, opt.init(params), params, {})
        >>> updates
        {'w': tensor([-0.0010, -0.0010])}

    References:
        Ren, Feng, Liu, Pan, Fu, Mai, Yang, TorchOpt: An Efficient Library for Differentiable
        Optimization, 2023.
    """
    if not (callable(getattr(transformation, "init", None)) and callable(getattr(transformation, "update", None))):
        raise TransferError(
            f"optim.from_torchopt: got {type(transformation).__name__}, wanted a gradient transformation with init and "
            "update, such as torchopt.adam(1e-3); torchopt.Adam and its like hold their parameters and are not"
        )

    def init(params: Tree) -> Tree:
        state = transformation.init(params)
        for path, leaf in tree.paths(state).items():
            if not isinstance(leaf, Tensor):
                raise TransferError(
                    f"optim.from_torchopt: the state has {path} = {leaf!r}, of type {type(leaf).__name__}; "
                    "a state holds tensors only"
                )
        return state

    def update(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        return transformation.update(grads, state, params=params, inplace=False)

    return Optimizer(init, update, {})
