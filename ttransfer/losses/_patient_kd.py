"""Patient knowledge distillation: the first token's state in many layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import unit, wide
from ttransfer.losses._check import want_alike, want_variant

Layers = Tensor | Sequence[Tensor]


@claims(
    coupled=False,
    zero_at_equality=True,
    non_negative=True,
    symmetric=True,
    scale_invariant=True,
    double_backward=True,
)
def patient_kd(student: Layers, teacher: Layers, *, variant: Literal["paper", "code"] = "paper") -> Tensor:
    r"""Squared distance of normalised states of the first token, summed over the layers that are paired.

    .. math::
        \frac1n \sum_i \sum_j \Bigl\| \frac{s_{ij}}{\|s_{ij}\|} - \frac{t_{ij}}{\|t_{ij}\|} \Bigr\|^2

    The paper pairs the student's layers but the last with every second of the teacher's ("skip"), or with its last
    ones; choosing is the caller's.

    In words, `variant="code"` differs so: a mean over layers and widths too, which divides by their product.

    Args:
        student: states of the first token, (n, layers, d), or a list of (n, d), one a layer.
        teacher: states of the layers paired with these, likewise; get no gradient.
        variant: "paper" sums over layers and widths, "code" takes their mean, as the authors'.

    Returns:
        A scalar without units, for "paper" from 0 to 4 times the number of layers; a mean over examples.

    Raises:
        TransferError: for no layers, for shapes that differ, or an unknown variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = [torch.tensor([[2.0, 0.0]])] * 2, [torch.tensor([[0.0, 1.0]])] * 2
        >>> tt.losses.patient_kd(student, teacher).item()  # 2 layers, 2 each
        4.0
        >>> tt.losses.patient_kd(student, teacher, variant="code").item()
        1.0

    Checked against:
        A loop from the paper.

    Peers:
        The authors' code ("code") always returns half precision.

    References:
        Siqi Sun, Yu Cheng, Zhe Gan, Jingjing Liu.
        Patient Knowledge Distillation for BERT Model Compression. 2019.
    """
    want_variant("patient_kd", variant)
    s, t = _stacked(student), _stacked(teacher)
    want_alike("patient_kd", rank=3, student=s, teacher=t)
    if s.ndim != 3 or s.shape[1] == 0:
        raise TransferError(f"patient_kd: wanted states (n, layers, d), got student {shown(s)}")
    dtype = s.dtype
    s, t = wide(s, t.detach())
    mean = F.mse_loss(unit(s, 2), unit(t, 2))
    return (mean if variant == "code" else mean * (s.shape[1] * s.shape[2])).to(dtype)


def _stacked(layers: Layers) -> Tensor:
    if isinstance(layers, Tensor):
        return layers
    if len(layers) == 0 or any(x.ndim != 2 or x.shape != layers[0].shape for x in layers):
        raise TransferError(
            f"patient_kd: wanted states (n, d) of at least one layer, got {', '.join(map(shown, layers)) or 'none'}"
        )
    return torch.stack(list(layers), 1)
