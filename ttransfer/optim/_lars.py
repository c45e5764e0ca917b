"""LARS: momentum with a rate for each layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer.core._types import Optimizer, Scalar, Tree
from ttransfer.optim._leaf import cast, each, norm, safe_ratio, wide, zeros
from ttransfer.optim._names import declare

__all__ = ["lars"]


def lars(
    lr: Scalar, *, momentum: Scalar = 0.9, weight_decay: Scalar = 0.0, trust_coefficient: Scalar = 1e-3
) -> Optimizer:
    r"""Layer-wise adaptive rate scaling for large batches.

    .. math::
        v_t = \mu v_{t-1} + \eta\,\kappa\, \frac{\lVert\theta\rVert}{\lVert g\rVert + \lambda\lVert\theta\rVert}\,
        (g + \lambda\theta), \qquad \Delta\theta = -v_t

    Each tensor is a layer. As in the paper the learning rate is inside the velocity. Where
    :math:`\theta` or the divisor is 0 (a bias that starts at zero) the local rate
    :math:`\kappa\,\lVert\theta\rVert / (\dots)` is 1.

    Args:
        lr: global learning rate η.
        momentum: what is kept of the velocity; there is always a buffer.
        weight_decay: L2 penalty λ.
        trust_coefficient: how far a layer may go, κ, in parts of its norm.

    Returns:
        An optimizer with the numbers "lr", "momentum", "weight_decay" and "trust_coefficient".

    Raises:
        TransferError: if a number is not one.

    Example:
        >>> import torch, ttransfer as tt
        >>> opt = tt.optim.lars(1.0, trust_coefficient=0.1)
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> grads = {"w": torch.tensor([0.0, 2.0])}
        >>> updates, state = opt.update(grads, opt.init(params), params, tt.optim.hyper_at(opt))
        >>> updates
        {'w': tensor([-0.0000, -0.5000])}

    References:
        You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks, 2017.
    """

    def init(params: Tree) -> Tree:
        return {"momentum": zeros(params)}

    def update(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        def push(h: Mapping[str, Tensor], p: Tensor, g: Tensor, v: Tensor) -> Tensor:
            size, decay = norm(p), h["weight_decay"]
            local = safe_ratio(h["trust_coefficient"] * size, cast(norm(g), p) + decay * size)
            return h["momentum"] * v + h["lr"] * local * (cast(g, p) + decay * wide(p))

        velocity = each(push, hyper, params, grads, state["momentum"])
        return tree.map(lambda v: -v, velocity), {"momentum": velocity}

    hyper = declare("lars", lr=lr, momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust_coefficient)
    return Optimizer(init, update, hyper)
