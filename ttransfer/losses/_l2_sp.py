"""Weight decay towards the starting point of fine-tuning, and towards 0."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer._numeric import wide
from ttransfer.losses._check import want_floats

__all__ = ["l2", "l2_sp"]


@claims(coupled=False)
def l2_sp(
    params: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    *,
    alpha: float | Tensor = 0.01,
    beta: float | Tensor = 0.01,
) -> Tensor:
    r"""Weight decay towards the starting point for what was pretrained, and towards 0 for what is new.

    .. math:: \frac\alpha2 \sum_{w \in S} \|w - w^0\|^2 + \frac\beta2 \sum_{w \notin S} \|w\|^2

    S are the names that the starting point has in the same shape: a head for other classes is new by its shape, or by
    its name. As a term it reads ``"student:params", "start:params"``, where `start` is a net that is not trained. The
    optimizer's own weight decay should then be 0.

    Args:
        params: name -> weight, of any shapes.
        start: name -> weight at the start; gets no gradient. Names that `params` has not are not looked at.
        alpha: weight of what was pretrained, at least 0.
        beta: weight of what is new, at least 0.

    Returns:
        A scalar, at least 0, in squared units of the weights: the sum over all of them, however large the net.

    Raises:
        TransferError: for no weights, for integers, or if nothing of `params` is in `start`.

    Example:
        >>> import torch, ttransfer as tt
        >>> params = {"body": torch.tensor([3.0, 1.0]), "head": torch.tensor([4.0])}
        >>> tt.losses.l2_sp(params, {"body": torch.tensor([1.0, 1.0])}, alpha=1.0, beta=0.5).item()  # 2 + 4
        6.0

    Checked against:
        zhijian's L2SP, and a loop from the paper.

    Peers:
        TLlib has the two halves apart and without weights: SPRegularization and L2Regularization. zhijian's trainer
        hands its L2SP detached weights, so that it changes nothing.

    References:
        Xuhong Li, Yves Grandvalet, Franck Davoine.
        Explicit Inductive Bias for Transfer Learning with Convolutional Networks. 2018.
    """
    if not params:
        raise TransferError("l2_sp: wanted at least one weight, got none")
    kept = {name for name, w in params.items() if name in start and start[name].shape == w.shape}
    if not kept:
        names = f"{next(iter(params))!r}, ... and start {next(iter(start), None)!r}, ..."
        raise TransferError(f"l2_sp: nothing of params is in start by name and shape: params has {names}")
    total = torch.zeros((), dtype=torch.float32, device=params[next(iter(kept))].device)
    for name, w in params.items():
        want_floats("l2_sp", **{"params": w, **({"start": start[name]} if name in kept else {})})
        if name in kept:
            here, there = wide(w, start[name].detach())
            total = total + alpha * F.mse_loss(here, there, reduction="sum")
        else:
            total = total + beta * wide(w)[0].square().sum()
    return (total / 2).to(_dtype(params))


@claims(coupled=False)
def l2(params: Mapping[str, Tensor], *, alpha: float | Tensor = 0.01) -> Tensor:
    r"""Weight decay towards 0, as a loss.

    .. math:: \frac\alpha2 \sum_w \|w\|^2

    Under plain gradient descent this is an optimizer's weight decay; under Adam it is not, for there the decay that
    is part of the loss is divided by the gradient's size.

    Args:
        params: name -> weight, of any shapes.
        alpha: at least 0.

    Returns:
        A scalar, at least 0, in squared units of the weights: the sum over all of them.

    Raises:
        TransferError: for no weights, or for integers.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.losses.l2({"head": torch.tensor([3.0, 1.0])}, alpha=1.0).item()
        5.0

    Checked against:
        A loop.

    Peers:
        TLlib has it without α as L2Regularization.

    References:
        Anders Krogh, John A. Hertz. A Simple Weight Decay Can Improve Generalization. 1991.
    """
    if not params:
        raise TransferError("l2: wanted at least one weight, got none")
    want_floats("l2", **params)
    squares = torch.stack([wide(w)[0].square().sum() for w in params.values()])
    return (alpha * squares.sum() / 2).to(_dtype(params))


def _dtype(params: Mapping[str, Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, (w.dtype for w in params.values()))
