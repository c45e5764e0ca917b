"""Self-information of predictions, position by position."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer._numeric import wide
from ttransfer.align._check import want_logits

__all__ = ["self_information"]


def self_information(logits: Tensor, *, variant: Literal["paper", "code"] = "paper") -> Tensor:
    r"""Weighted self-information of predictions, what the critic of AdvEnt looks at.

    .. math:: I_{ic} = -p_{ic} \log p_{ic}, \qquad p_i = \mathrm{softmax}(z_i)

    Summed over classes it is the entropy. The authors' code divides it by the logarithm of the number of classes.

    Args:
        logits: (n, classes) or maps (n, classes, ...).
        variant: "paper" in nats, "code" divided by log(classes), so that its sum over classes is at most 1.

    Returns:
        Of the logits' shape, from 0 to 1/e, or that by log(classes).

    Raises:
        TransferError: if the shape is not that of logits, or for another variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.self_information(torch.zeros(1, 2), variant="code")
        tensor([[0.5000, 0.5000]])

    Checked against:
        A loop.

    Peers:
        TLlib has the code's, with 1e-30 added inside the logarithm.

    References:
        Tuan-Hung Vu, Himalaya Jain, Maxime Bucher, Matthieu Cord, Patrick Pérez.
        ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic Segmentation. 2019.
    """
    want_logits("self_information", logits=logits)
    if variant not in ("paper", "code"):
        raise TransferError(f"self_information: wanted variant 'paper' or 'code', got {variant!r}")
    (z,) = wide(logits)
    log_p = z.log_softmax(1)
    by = math.log(logits.shape[1]) if variant == "code" else 1.0
    return (-log_p.exp() * log_p / by).to(logits.dtype)
