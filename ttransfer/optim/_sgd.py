"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._types import Optimizer, Scalar, Tree
from ttransfer.optim._leaf import cast, count, each, wide, zeros
from ttransfer.optim._names import declare

__all__ = ["sgd"]


def sgd(
    lr: Scalar,
    *,
    momentum: Scalar = 0.0,
    dampening: Scalar = 0.0,
    nesterov: bool = False,
    weight_decay: Scalar = 0.0,
) -> Optimizer:
    r"""Stochastic gradient descent with momentum, as `torch.optim.SGD`.

    .. math::
        g \leftarrow g + \lambda\theta, \qquad
        v_1 = g,\; v_t = \mu v_{t-1} + (1 - \tau) g, \qquad
        \Delta\theta = -\eta\, v_t \;\text{ or, with nesterov, } -\eta\,(g + \mu v_t)

    Args:
        lr: learning rate.
        momentum: what is kept of the velocity. The plain number 0 means no momentum for good: no
            buffer is kept, and "momentum" is not among the numbers. To switch momentum on later or
            to sweep it from 0, give it as a tensor or a schedule.
        dampening: what is kept back of each gradient after the first.
        nesterov: look ahead along the velocity; without dampening.
        weight_decay: L2 penalty, added to the gradient.

    Returns:
        An optimizer with the numbers "lr" and "weight_decay", with momentum also "momentum" and,
        unless nesterov, "dampening".

    Raises:
        TransferError: if a number is not one, or if dampening or nesterov is asked for without
            momentum, or both together.

    Example:
        >>> import torch, ttransfer as tt
        >>> opt = tt.optim.sgd(0.1, momentum=0.9)
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> updates, state = opt.update(params, opt.init(params), params, tt.optim.hyper_at(opt))
        >>> updates
        {'w': tensor([-0.1000, -0.2000])}
        >>> sorted(state)
        ['count', 'momentum']

    References:
        Sutskever, Martens, Dahl, Hinton, On the Importance of Initialization and Momentum in Deep
        Learning, 2013.
    """
    hyper = declare("sgd", lr=lr, weight_decay=weight_decay)
    inertial = not _is_zero(momentum)
    damped = not _is_zero(dampening)
    if damped and (nesterov or not inertial):
        raise TransferError(f"optim.sgd: dampening is {dampening!r}; wanted momentum with it, and no nesterov")
    if nesterov and not inertial:
        raise TransferError("optim.sgd: nesterov=True without momentum; give momentum")
    if inertial:
        hyper |= declare("sgd", momentum=momentum)
        if not nesterov:
            hyper |= declare("sgd", dampening=dampening)

    def init(params: Tree) -> Tree:
        return {"count": count("sgd", params), "momentum": zeros(params)} if inertial else {}

    def update(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        slopes = each(lambda h, p, g: cast(g, p) + h["weight_decay"] * wide(p), hyper, params, grads)
        if not inertial:
            return each(lambda h, g: h["lr"] * g, {"lr": -hyper["lr"]}, slopes), state
        done, mu = state["count"], hyper["momentum"]
        fresh = torch.ones_like(mu) if nesterov else torch.where(done == 0, 1.0, 1.0 - hyper["dampening"])
        numbers = {"lr": -hyper["lr"], "momentum": mu, "fresh": fresh}
        velocity = each(lambda h, v, g: h["momentum"] * v + h["fresh"] * g, numbers, state["momentum"], slopes)
        ahead = each(lambda h, v, g: g + h["momentum"] * v, numbers, velocity, slopes) if nesterov else velocity
        return each(lambda h, v: h["lr"] * v, numbers, ahead), {"count": done + 1, "momentum": velocity}

    return Optimizer(init, update, hyper)


def _is_zero(value: Scalar) -> bool:
    """Say whether a number is 0 for good."""
    return isinstance(value, (int, float)) and value == 0
