"""Gradient clipping."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer.core._types import Optimizer, Scalar, Tree
from ttransfer.optim._leaf import each, root, wide
from ttransfer.optim._names import declare

__all__ = ["clip_by_norm"]


def clip_by_norm(max_norm: Scalar) -> Optimizer:
    r"""Shrink the gradients so that their norm, all leaves together, is at most a number.

    .. math:: g \min\left(1, \frac{c}{\lVert g\rVert + 10^{-6}}\right)

    As `torch.nn.utils.clip_grad_norm_`. Put it first in a `chain`. Inside a `partition` or a
    `masked` the norm is that of the leaves it is given.

    Args:
        max_norm: the largest norm c.

    Returns:
        An optimizer with the number "max_norm" and no state.

    Raises:
        TransferError: if `max_norm` is not a number.

    Example:
        >>> import torch, ttransfer as tt
        >>> opt = tt.optim.chain(tt.optim.clip_by_norm(1.0), tt.optim.sgd(1.0))
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, state = opt.update(params, opt.init(params), params, tt.optim.hyper_at(opt))
        >>> updates
        {'w': tensor([-0.6000, -0.8000])}

    References:
        Pascanu, Mikolov, Bengio, On the Difficulty of Training Recurrent Neural Networks, 2013.
    """

    def init(params: Tree) -> Tree:
        return {}

    def update(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        squares = torch.stack([wide(g).square().sum().to(torch.float64) for g in tree.leaves(grads)])
        shrink = (hyper["max_norm"] / (root(squares.sum()) + 1e-6)).clamp(max=1.0)
        return each(lambda h, g: h["shrink"] * wide(g), {"shrink": shrink}, grads), state

    return Optimizer(init, update, declare("clip_by_norm", max_norm=max_norm))
