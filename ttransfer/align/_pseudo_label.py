"""Self-training on the labels that a net gives itself where it is sure of them."""

from __future__ import annotations

from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.align._check import in_range, want_logits


@claims(
    coupled=False,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    row_symmetric=True,
    double_backward=True,
)
def pseudo_label(logits: Tensor, *, threshold: float | Tensor = 0.0) -> Tensor:
    r"""Cross-entropy with the class that the same prediction finds likeliest, where it is sure of it.

    .. math::
        -\frac1n \sum_i \bigl[ \max_c p_{ic} \geq \tau \bigr] \log p_{i \hat y_i}, \qquad
        \hat y_i = \arg\max_c p_{ic}, \quad p_i = \mathrm{softmax}(z_i)

    The mean is over all rows, those below the threshold too, which add 0: the fewer are sure, the less the loss
    weighs. The paper has no threshold; its weight rises from 0 to 3 over the epochs, which is a schedule's work.

    Args:
        logits: (n, classes) or (n, classes, ...); for maps the mean is over rows and positions.
        threshold: τ, the least probability that counts as sure, from 0 (all) to 1.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        TransferError: if the shape is not that of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> logits = torch.tensor([[3.0, 0.0], [0.5, 0.0]])  # probabilities 0.95 and 0.62
        >>> round(tt.align.pseudo_label(logits, threshold=0.9).item(), 4)  # -log 0.9526 / 2
        0.0243

    Checked against:
        A loop from the formula.

    Peers:
        TLlib's ConfidenceBasedSelfTrainingLoss on the same logits twice is this, but for a threshold that is not
        reached by what equals it. Codes that take the mean over the sure rows alone have another loss: there one
        sure row in a hundred weighs as much as a hundred.

    References:
        Dong-Hyun Lee. Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
        Networks. 2013.
    """
    want_logits("pseudo_label", logits=logits)
    in_range("pseudo_label", 0.0, 1.0, closed=True, threshold=threshold)
    return _to_likeliest(logits, logits, threshold)


@claims(
    coupled=False,
    non_negative=True,
    class_symmetric=True,
    row_symmetric=True,
    double_backward=True,
    shift_invariant=True,
    detaches=("weak",),
)
def fixmatch(strong: Tensor, weak: Tensor, *, threshold: float | Tensor = 0.95) -> Tensor:
    r"""Cross-entropy of a hard view with the class that the same net finds likeliest in an easy view.

    .. math::
        -\frac1n \sum_i \bigl[ \max_c q_{ic} \geq \tau \bigr] \log p_{i \hat y_i}, \qquad
        \hat y_i = \arg\max_c q_{ic}, \quad q_i = \mathrm{softmax}(w_i), \quad p_i = \mathrm{softmax}(s_i)

    The mean is over all rows, those below the threshold too, as in the paper. The two views are domains of their own
    in a step: ``tt.term(tt.align.fixmatch, "net(strong)", "net(weak)")``.

    Args:
        strong: logits (n, classes) or (n, classes, ...) of the strongly augmented inputs.
        weak: logits of the same shape of the weakly augmented ones; get no gradient.
        threshold: τ, the least probability that counts as sure, from 0 (all) to 1.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        TransferError: if the shapes differ or are not those of logits.

    Example:
        >>> import torch, ttransfer as tt
        >>> strong, weak = torch.zeros(2, 2), torch.tensor([[9.0, 0.0], [1.0, 0.0]])  # the first is sure
        >>> round(tt.align.fixmatch(strong, weak).item(), 4)  # log 2 / 2
        0.3466

    Checked against:
        A loop from the formula.

    Peers:
        TLlib's ConfidenceBasedSelfTrainingLoss is the same, but for a threshold that is not reached by what equals it.

    References:
        Kihyuk Sohn, David Berthelot, Chun-Liang Li, Zizhao Zhang, Nicholas Carlini, Ekin D. Cubuk, Alex Kurakin,
        Han Zhang, Colin Raffel. FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence. 2020.
    """
    want_views("fixmatch", strong, weak)
    in_range("fixmatch", 0.0, 1.0, closed=True, threshold=threshold)
    return _to_likeliest(strong, weak, threshold)


def want_views(called: str, strong: Tensor, weak: Tensor) -> None:
    """Refuse two views whose logits are not of one shape.

    Raises:
        TransferError: naming both, with shape and dtype.
    """
    want_logits(called, strong=strong, weak=weak)
    if strong.shape != weak.shape:
        raise TransferError(
            f"{called}: wanted logits of one shape for two views of the same rows, "
            f"got strong {shown(strong)} and weak {shown(weak)}"
        )


def _to_likeliest(logits: Tensor, by: Tensor, threshold: float | Tensor) -> Tensor:
    z, w = wide(logits, by.detach())
    likeliest = w.argmax(1, keepdim=True)
    sure = w.softmax(1).gather(1, likeliest) >= threshold
    entropy = -z.log_softmax(1).gather(1, likeliest)
    return (entropy * sure).mean().to(logits.dtype)
