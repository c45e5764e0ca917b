"""Weight decay as a part of a chain."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ttransfer.core._types import Optimizer, Scalar, Tree
from ttransfer.optim._leaf import cast, each, wide
from ttransfer.optim._names import declare

__all__ = ["add_weight_decay"]


def add_weight_decay(weight_decay: Scalar) -> Optimizer:
    r"""Add an L2 penalty's gradient to the gradients.

    .. math:: g + \lambda\theta

    Args:
        weight_decay: the strength λ.

    Returns:
        An optimizer with the number "weight_decay" and no state.

    Raises:
        TransferError: if `weight_decay` is not a number.

    Example:
        >>> import torch, ttransfer as tt
        >>> opt = tt.optim.chain(tt.optim.add_weight_decay(1e-4), tt.optim.adam(1e-3))
        >>> sorted(opt.hyper)
        ['beta1', 'beta2', 'eps', 'lr', 'weight_decay']

    References:
        Krogh, Hertz, A Simple Weight Decay Can Improve Generalization, 1992.
    """

    def init(params: Tree) -> Tree:
        return {}

    def update(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        return each(lambda h, p, g: cast(g, p) + h["weight_decay"] * wide(p), hyper, params, grads), state

    return Optimizer(init, update, declare("add_weight_decay", weight_decay=weight_decay))
