"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ttransfer.core._types import Optimizer, Scalar, Tree
from ttransfer.optim._leaf import cast, count, each, root, wide, zeros
from ttransfer.optim._names import declare

__all__ = ["adam", "adamw", "direction", "moments"]


def adam(lr: Scalar, *, beta1: Scalar = 0.9, beta2: Scalar = 0.999, eps: Scalar = 1e-8) -> Optimizer:
    r"""Adam, as `torch.optim.Adam`.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g, \quad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g^2, \quad
        \Delta\theta = -\eta\, \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    The bias corrections are computed in float64. For an L2 penalty on the gradient, as the
    `weight_decay` of `torch.optim.Adam`, put `add_weight_decay` before it in a `chain`.

    Args:
        lr: learning rate.
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        eps: added to the root.

    Returns:
        An optimizer with the numbers "lr", "beta1", "beta2" and "eps".

    Raises:
        TransferError: if a number is not one.

    Example:
        >>> import torch, ttransfer as tt
        >>> opt = tt.optim.adam(tt.schedules.cosine(1e-3, 1000))
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> updates, state = opt.update(params, opt.init(params), params, tt.optim.hyper_at(opt))
        >>> updates
        {'w': tensor([-0.0010, -0.0010])}
        >>> sorted(state)
        ['count', 'mu', 'nu']

    References:
        Kingma, Ba, Adam: A Method for Stochastic Optimization, 2015.
    """

    def init(params: Tree) -> Tree:
        return moments("adam", params)

    def update(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        towards, state = direction(grads, state, hyper)
        return each(lambda h, d: h["lr"] * d, {"lr": -hyper["lr"]}, towards), state

    return Optimizer(init, update, declare("adam", lr=lr, beta1=beta1, beta2=beta2, eps=eps))


def adamw(
    lr: Scalar, *, beta1: Scalar = 0.9, beta2: Scalar = 0.999, eps: Scalar = 1e-8, weight_decay: Scalar = 1e-2
) -> Optimizer:
    r"""Adam with decoupled weight decay, as `torch.optim.AdamW`.

    .. math:: \Delta\theta = \Delta\theta_{\text{Adam}} - \eta\lambda\theta

    Args:
        lr: learning rate.
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        eps: added to the root.
        weight_decay: the part λ of each parameter that is taken away, times the learning rate.

    Returns:
        An optimizer with the numbers "lr", "beta1", "beta2", "eps" and "weight_decay".

    Raises:
        TransferError: if a number is not one.

    Example:
        >>> import torch, ttransfer as tt
        >>> opt = tt.optim.adamw(1e-2, weight_decay=0.5)
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> updates, state = opt.update(params, opt.init(params), params, tt.optim.hyper_at(opt))
        >>> updates
        {'w': tensor([-0.0150, -0.0200])}

    References:
        Loshchilov, Hutter, Decoupled Weight Decay Regularization, 2019.
    """

    def init(params: Tree) -> Tree:
        return moments("adamw", params)

    def update(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        towards, state = direction(grads, state, hyper)
        scaled = {"lr": -hyper["lr"], "decay": -hyper["lr"] * hyper["weight_decay"]}
        return each(lambda h, p, d: h["lr"] * d + h["decay"] * wide(p), scaled, params, towards), state

    return Optimizer(
        init, update, declare("adamw", lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
    )


def moments(caller: str, params: Tree) -> Tree:
    """The state of Adam and its kin."""
    return {"count": count(caller, params), "mu": zeros(params), "nu": zeros(params)}


def direction(grads: Tree, state: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
    """Adam's step before the learning rate, and the new state."""
    done = state["count"] + 1
    numbers = {name: hyper[name] for name in ("beta1", "beta2", "eps")}
    # 1 - beta and its powers lose digits in float32, so they are taken before the cast.
    for i in ("1", "2"):
        beta = hyper["beta" + i]
        numbers |= {"new" + i: 1.0 - beta, "whole" + i: 1.0 - beta ** done.to(beta.dtype)}
    mu = each(lambda h, m, g: h["beta1"] * m + h["new1"] * cast(g, m), numbers, state["mu"], grads)
    nu = each(lambda h, v, g: h["beta2"] * v + h["new2"] * cast(g, v).square(), numbers, state["nu"], grads)
    towards = each(lambda h, m, v: (m / h["whole1"]) / (root(v / h["whole2"]) + h["eps"]), numbers, mu, nu)
    return towards, {"count": done, "mu": mu, "nu": nu}
