"""Distillation at a temperature that is learned against the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer import losses
from ttransfer._claims import claims
from ttransfer.core import Params, Term, term

__all__ = ["ctkd"]


def ctkd(
    student: Any,
    teacher: Any,
    *,
    theta: float = 1.0,
    scale: Any = 1.0,
    lowest: Any = 1.0,
    span: Any = 20.0,
    weight: Any = 1.0,
) -> Term:
    """Distil at a temperature that makes it hard: `tt.losses.ctkd` with its θ.

    θ belongs to the term. In the same update in which the student descends it ascends, `scale` times as fast.

    Args:
        student: the read of the student's logits, (n, classes).
        teacher: the read of the teacher's.
        theta: where it begins; 1 is a temperature of 15.6.
        scale: strength of the reversed gradient; the authors raise it from 0 to 1 over the first 10 epochs.
        lowest: the temperature at θ = -∞.
        span: from the lowest temperature to the highest.
        weight: of the term; it scales the gradients of student and θ alike.

    Returns:
        A Term.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.ctkd("student(source)", "teacher(source)", scale=tt.schedules.ramp(1000))
        >>> sorted(term.hyper)
        ['lowest', 'scale', 'span', 'weight']

    References:
        Zheng Li, Xiang Li, Lingfeng Yang, Borui Zhao, Renjie Song, Lei Luo, Jun Li, Jian Yang.
        Curriculum Temperature for Knowledge Distillation. 2023.
    """

    @claims(coupled=False, about=ctkd)
    def loss(
        student: Tensor,
        teacher: Tensor,
        *,
        params: Mapping[str, Tensor],
        scale: float | Tensor,
        lowest: float | Tensor,
        span: float | Tensor,
    ) -> Tensor:
        return losses.ctkd(student, teacher, params["theta"], scale=scale, lowest=lowest, span=span)

    def init(generator: torch.Generator, student: Tensor, teacher: Tensor) -> Params:
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        return {"theta": torch.tensor(theta, dtype=dtype, device=generator.device)}

    return term(loss, student, teacher, weight=weight, params=init, scale=scale, lowest=lowest, span=span)
