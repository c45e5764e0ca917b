"""LAMB: Adam with a rate for each layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ttransfer.core._types import Optimizer, Scalar, Tree
from ttransfer.optim._adam import direction, moments
from ttransfer.optim._leaf import each, norm, safe_ratio, wide
from ttransfer.optim._names import declare

__all__ = ["lamb"]


def lamb(
    lr: Scalar, *, beta1: Scalar = 0.9, beta2: Scalar = 0.999, eps: Scalar = 1e-6, weight_decay: Scalar = 0.0
) -> Optimizer:
    r"""Layer-wise adaptive moments for large batches.

    .. math::
        u = \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda\theta, \qquad
        \Delta\theta = -\eta\, \frac{\lVert\theta\rVert}{\lVert u\rVert}\, u

    Each tensor is a layer, and the paper's :math:`\phi` is the identity. Where either norm is 0 (a
    bias that starts at zero) the ratio is 1.

    Args:
        lr: learning rate.
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        eps: added to the root.
        weight_decay: the part λ of the parameter that joins Adam's direction.

    Returns:
        An optimizer with the numbers "lr", "beta1", "beta2", "eps" and "weight_decay".

    Raises:
        TransferError: if a number is not one.

    Example:
        >>> import torch, ttransfer as tt
        >>> opt = tt.optim.lamb(0.1)
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, state = opt.update(params, opt.init(params), params, tt.optim.hyper_at(opt))
        >>> updates
        {'w': tensor([-0.3536, -0.3536])}

    References:
        You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer, Hsieh, Large Batch
        Optimization for Deep Learning: Training BERT in 76 Minutes, 2020.
    """

    def init(params: Tree) -> Tree:
        return moments("lamb", params)

    def update(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        towards, state = direction(grads, state, hyper)

        def step(h: Mapping[str, Tensor], p: Tensor, d: Tensor) -> Tensor:
            u = d + h["weight_decay"] * wide(p)
            return -h["lr"] * safe_ratio(norm(p), norm(u)) * u

        return each(step, hyper, params, towards), state

    return Optimizer(init, update, declare("lamb", lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay))
