"""Variational information distillation with what it learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer import losses
from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer.core import Adapter, Params, Term, term
from ttransfer.terms._parts import part, under, want_adapters

__all__ = ["vid"]

_LEAST = 1e-5  # of a variance


def vid(student: Any, teacher: Any, *, mean: Adapter, variance: float = 5.0, weight: Any = 1.0) -> Term:
    """Let the student predict the teacher's features, with a learned variance for each channel: `tt.losses.vid`.

    The regressor and the variances belong to the term and train with the student. A variance is
    softplus(α) + 1e-5, with one α for each channel.

    Args:
        student: the read of the student's features, (n, d) or (n, c, h, w).
        teacher: the read of the teacher's.
        mean: student's features -> the teacher's shape, such as `tt.adapters.linear(512)` or `tt.adapters.conv(64)`.
        variance: what all begin at, above 1e-5, in the square of the teacher's units.
        weight: of the term.

    Returns:
        A Term.

    Raises:
        TransferError: for a variance that is not above 1e-5, for a mean that is no Adapter.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.vid("student(source).layer3", "teacher(source).layer3", mean=tt.adapters.conv(256))
        >>> term.coupled
        False

    References:
        Sungsoo Ahn, Shell Xu Hu, Andreas Damianou, Neil D. Lawrence, Zhenwen Dai.
        Variational Information Distillation for Knowledge Transfer. 2019.
    """
    want_adapters("vid", mean=mean)
    if not variance > _LEAST:
        raise TransferError(f"vid: wanted a variance above {_LEAST}, got {variance!r}")

    @claims(coupled=False, about=vid)
    def loss(student: Tensor, teacher: Tensor, *, params: Mapping[str, Tensor]) -> Tensor:
        return losses.vid(mean.apply(part(params, "mean"), student), teacher, F.softplus(params["alpha"]) + _LEAST)

    def init(generator: torch.Generator, student: Tensor, teacher: Tensor) -> Params:
        regressor = under("mean", mean.init(generator, student))
        dtype = torch.float64 if teacher.dtype == torch.float64 else torch.float32
        alpha = math.log(math.expm1(variance - _LEAST))
        return {**regressor, "alpha": torch.full(teacher.shape[1:2], alpha, dtype=dtype, device=generator.device)}

    return term(loss, student, teacher, weight=weight, params=init)
