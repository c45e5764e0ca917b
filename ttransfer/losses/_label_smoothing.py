"""Label smoothing: cross-entropy with labels that are not quite sure."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._numeric import wide
from ttransfer.losses._check import want_labels, want_logits


@claims(coupled=False, non_negative=True, shift_invariant=True, class_symmetric=True, double_backward=True)
def label_smoothing(logits: Tensor, labels: Tensor, *, smoothing: float | Tensor = 0.1) -> Tensor:
    r"""Cross-entropy with labels mixed with the uniform distribution.

    .. math::
        -\frac1n \sum_i \Bigl[ (1 - \varepsilon) \log p_{i, y_i} + \frac{\varepsilon}{c} \sum_j \log p_{ij} \Bigr],
        \qquad p_i = \mathrm{softmax}(z_i)

    The label's class has the probability 1 - ε + ε/c, each other ε/c. `F.cross_entropy(label_smoothing=...)` is the
    same, for an ε that is a Python number; this one takes a tensor too, so that it can be scheduled or learned.

    Args:
        logits: (n, classes) or (n, classes, ...).
        labels: whole numbers (n,) or (n, ...), from 0 to classes - 1.
        smoothing: ε, from 0 (cross-entropy) to 1 (uniform).

    Returns:
        A scalar in nats, at least 0: the mean over rows and positions.

    Raises:
        TransferError: for what are no logits, or labels that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> round(tt.losses.label_smoothing(logits, labels, smoothing=0.5).item(), 4)  # 0.1269 + 0.25 * 2
        0.6269

    Checked against:
        `F.cross_entropy`, and a loop.

    Peers:
        timm's LabelSmoothingCrossEntropy is the same. Some codes, Tf-KD's among them, give ε/(c - 1) to each other
        class and 1 - ε to the label's: that is this one at a smoothing of ε c / (c - 1).

    References:
        Christian Szegedy, Vincent Vanhoucke, Sergey Ioffe, Jonathon Shlens, Zbigniew Wojna.
        Rethinking the Inception Architecture for Computer Vision. 2016.
    """
    want_logits("label_smoothing", logits=logits)
    want_labels("label_smoothing", logits, labels)
    (z,) = wide(logits)
    log_p = z.log_softmax(1)
    # No label is ignored: the other part would still count its row. -100 is refused as any that is out of range.
    own = F.nll_loss(log_p, labels.long(), ignore_index=-(2**31))
    return ((1 - smoothing) * own - smoothing * log_p.mean()).to(logits.dtype)
