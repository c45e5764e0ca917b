"""Distillation without a teacher: from a virtual one that is made of the labels."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import picked, wide
from ttransfer.losses._check import want_labels, want_logits, want_variant


@claims(coupled=False, non_negative=True, shift_invariant=True, class_symmetric=True, double_backward=True)
def tf_kd(
    logits: Tensor,
    labels: Tensor,
    *,
    correct: float | Tensor = 0.99,
    temperature: float | Tensor = 20.0,
    variant: Literal["paper", "code"] = "paper",
) -> Tensor:
    r"""Divergence from a virtual teacher that is nearly sure of the label and even among the other classes.

    .. math::
        \frac1n \sum_i \mathrm{KL}\bigl(\mathrm{softmax}(d_i / T) \,\|\, \mathrm{softmax}(z_i / T)\bigr), \qquad
        d_{ij} = \begin{cases} a & j = y_i \\ (1 - a) / (c - 1) & j \neq y_i \end{cases}

    The teacher's probabilities d are softened as if they were logits: at T = 20 what is left is nearly uniform. The
    paper weighs this regularisation by α and the cross-entropy with the labels by 1 - α. Its other half, where a net
    learns from a copy of itself that was trained before, is `kd`.

    In words, `variant="code"` differs so: the student's predictions are not softened, and the mean is over classes
    too, which the authors make up for by weights of up to 1000.

    Args:
        logits: (n, classes) or (n, classes, ...), of at least two classes.
        labels: whole numbers (n,) or (n, ...), from 0 to classes - 1.
        correct: a, the virtual teacher's probability of the label; the paper asks for 0.9 at least.
        temperature: T > 0.
        variant: "paper" softens both sides and sums over classes, "code" does neither, as the authors'.

    Returns:
        A scalar in nats, at least 0 (up to rounding): the mean over rows and positions, without a factor T².

    Raises:
        TransferError: for what are no logits, one class, labels that do not fit, or an unknown variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> logits, labels = torch.tensor([[0.98, 0.0]]), torch.tensor([0])  # d = (0.99, 0.01)
        >>> round(tt.losses.tf_kd(logits, labels).item(), 6)
        0.0
        >>> tt.losses.tf_kd(logits, labels, variant="code").item() > 0.05
        True

    Checked against:
        A loop from the paper, and for "code" the authors' formula with `F.kl_div`.

    Peers:
        Copies of the authors' code abound, some with the sum over classes.

    References:
        Li Yuan, Francis E. H. Tay, Guilin Li, Tao Wang, Jiashi Feng.
        Revisiting Knowledge Distillation via Label Smoothing Regularization. 2020.
    """
    want_variant("tf_kd", variant)
    want_logits("tf_kd", logits=logits)
    classes = logits.shape[1]
    if classes < 2:
        raise TransferError(f"tf_kd: wanted at least two classes, got logits {shown(logits)}")
    want_labels("tf_kd", logits, labels)
    (z,) = wide(logits)
    log_p = (z if variant == "code" else z / temperature).log_softmax(1)
    # All rows have one teacher, up to where the label is: log-probabilities of it and of each other class.
    odds = torch.as_tensor((correct - (1 - correct) / (classes - 1)) / temperature, dtype=z.dtype, device=z.device)
    log_other = -torch.logaddexp(odds, torch.full_like(odds, math.log(classes - 1)))
    log_label = odds + log_other
    own = picked(log_p, labels)
    rows = log_label.exp() * (log_label - own)
    rows = rows + log_other.exp() * ((classes - 1) * log_other - (log_p.sum(1) - own))
    return (rows.mean() / classes if variant == "code" else rows.mean()).to(logits.dtype)
