"""Tsallis entropy: uncertainty that punishes confident mistakes less than Shannon's."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer._numeric import entropies, wide
from ttransfer.align._check import in_range, want_logits

Number = float | Tensor


@claims(coupled=False, non_negative=True, shift_invariant=True, class_symmetric=True, row_symmetric=True)
def tsallis(logits: Tensor, *, alpha: Number = 1.9, temperature: Number = 1.0) -> Tensor:
    r"""Mean Tsallis entropy of the predictions.

    .. math:: \frac1n \sum_i \frac{1}{\alpha - 1} \Bigl( 1 - \sum_c p_{ic}^\alpha \Bigr), \qquad
        p_i = \mathrm{softmax}(z_i / T)

    At α = 1 it is Shannon's entropy, at α = 2 Gini's impurity. The larger α, the less a confident prediction is
    pushed on. The paper looks for the α that suits the data; the default is that of its code.

    Args:
        logits: (n, classes) or (n, classes, ...); for maps the mean is over rows and positions.
        alpha: α > 0.
        temperature: T > 0.

    Returns:
        A scalar, at least 0; in nats at α = 1.

    Raises:
        TransferError: if the shape is not that of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.align.tsallis(torch.zeros(3, 4), alpha=2.0).item(), 4)  # 1 - 4 / 16
        0.75

    Checked against:
        A loop from the formula, and Shannon's entropy.

    Peers:
        The authors' code has `tsallis_balanced`.

    References:
        Hong Liu, Jianmin Wang, Mingsheng Long. Cycle Self-Training for Domain Adaptation. 2021.
        Constantino Tsallis. Possible Generalization of Boltzmann-Gibbs Statistics. 1988.
    """
    want_logits("tsallis", logits=logits)
    in_range("tsallis", alpha=alpha, temperature=temperature)
    (z,) = wide(logits)
    log_p = (z / temperature).log_softmax(1)
    excess = torch.as_tensor(alpha, dtype=z.dtype, device=z.device) - 1
    # -(p^(α-1) - 1) / (α - 1), whose limit at α = 1 is -log p.
    near = excess == 0
    surprise = torch.where(near, log_p, torch.expm1(excess * log_p) / torch.where(near, 1, excess))
    return -(log_p.exp() * surprise).sum(1).mean().to(logits.dtype)


@claims(coupled=True, non_negative=True, shift_invariant=True, class_symmetric=True, row_symmetric=True)
def tsallis_balanced(logits: Tensor, *, alpha: Number = 1.9, temperature: Number = 2.0) -> Tensor:
    r"""Tsallis entropy class by class, with rows weighted by how sure they are: what the code of its authors has.

    .. math::
        \frac{1}{\alpha - 1} \sum_c \Bigl( 1 - \frac{\sum_i w_i \, p_{ic}^\alpha}{\sum_i w_i \, p_{ic}} \Bigr), \qquad
        p_i = \mathrm{softmax}(z_i / T), \quad w_i \propto 1 + e^{-H(p_i)}

    Every class weighs the same, however many rows have it. H is Shannon's entropy; the weights are held constant.
    A batch of one kind of rows costs less than one of many kinds, so it is no mean over rows.

    Args:
        logits: (n, classes).
        alpha: α > 0, not 1.
        temperature: T > 0.

    Returns:
        A scalar, at least 0.

    Raises:
        TransferError: if the shape is not that of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.align.tsallis_balanced(torch.zeros(3, 4), alpha=2.0).item(), 4)  # 4 (1 - 1/4)
        3.0

    Checked against:
        A loop, and the authors' sum, whose logarithm has 1e-5 added to the probabilities.

    Peers:
        The authors' code divides by the sums of the classes' probabilities, NaN where all are 0.

    References:
        Hong Liu, Jianmin Wang, Mingsheng Long. Cycle Self-Training for Domain Adaptation. 2021.
    """
    want_logits("tsallis_balanced", logits=logits)
    in_range("tsallis_balanced", alpha=alpha, temperature=temperature)
    if not isinstance(alpha, Tensor) and alpha == 1:
        raise TransferError("tsallis_balanced: wanted an alpha other than 1, where it has no value")
    (z,) = wide(logits)
    log_p = (z / temperature).log_softmax(1)
    log_w = torch.log1p((-entropies((z / temperature).detach())).exp())[:, None]
    # In logarithms, since a class may have no probability in any row.
    log_ratio = (log_w + alpha * log_p).logsumexp(0) - (log_w + log_p).logsumexp(0)
    return (-torch.expm1(log_ratio).sum() / (alpha - 1)).to(logits.dtype)
