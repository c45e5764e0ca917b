"""Overhaul of feature distillation with its connector, and margins from the teacher's batch norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer import losses
from ttransfer._claims import claims
from ttransfer._errors import TransferError, nearest
from ttransfer.core import Params, Read, Term, read, term
from ttransfer.core._paths import Forward
from ttransfer.terms._parts import batch_norm, norm_layer, part, under

__all__ = ["ofd"]


def ofd(student: Any, teacher: Any, *, norm: str | None = None, weight: Any = 1e-3) -> Term:
    r"""Bring the student's map to the teacher's before the ReLU, where it matters behind it: `tt.losses.ofd`.

    .. math:: \frac1n \sum_{i,k} d \bigl( \mathrm{BN}(W s_i)_k, \max(t_{ik}, m_k) \bigr)

    The connector, a 1x1 convolution without bias and a batch norm, belongs to the term and trains with the student. The
    margins m follow from weight and bias of a batch norm of the teacher: `tt.losses.ofd_margin`.

    The connector's statistics are those of the batch, so that the term sees the rows of all ranks of a sharded step.
    The authors keep the batch norms of the teacher in training mode: ``tt.functional(teacher, mode="train")``.

    Args:
        student: the read of the student's maps before the ReLU, (n, c, h, w).
        teacher: the read of the teacher's maps before the ReLU, of the same height and width: a batch norm's output, or
            the sum at the end of a residual block.
        norm: the teacher's batch norm that the margins come from, by its dotted name; None takes the module that
            `teacher` reads. For the sum at the end of a block the authors take the block's last batch norm.
        weight: of the term; 0.001 is the paper's for the last layer, and half of it for each layer before.

    Returns:
        A Term.

    Raises:
        TransferError: for a teacher that is no read of a forward, or names no module where `norm` is not given; when
            the step starts, for a module that is no batch norm of as many channels.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.ofd("student(source).layer4.1.bn2", "teacher(source).layer4.2.bn3")
        >>> [str(r) for r in term.reads]
        ['student(source).layer4.1.bn2', 'teacher(source).layer4.2.bn3', 'teacher:params']

    Checked against:
        The authors' formula written out, with layers of torch.nn.

    Peers:
        mdistiller has it. MMRazor divides by 1000. zhijian takes the margin from the batch at hand.

    References:
        Byeongho Heo, Jeesoo Kim, Sangdoo Yun, Hyojin Park, Nojun Kwak, Jin Young Choi.
        A Comprehensive Overhaul of Feature Distillation. 2019.
    """
    path = (teacher if isinstance(teacher, Read) else read(teacher)).path
    if not isinstance(path, Forward) or (norm is None and (path.tap is None or path.tap.input)):
        raise TransferError(
            "ofd: the margins come from a batch norm of the teacher: read its output, 'teacher(source).layer4.2.bn3', "
            f"or name it by norm=; got '{path}'"
        )
    module = norm if norm is not None else str(path.tap and path.tap.module)

    @claims(coupled=True, about=ofd)
    def loss(
        student: Tensor, teacher: Tensor, weights: Mapping[str, Tensor], *, params: Mapping[str, Tensor]
    ) -> Tensor:
        margin = losses.ofd_margin(*_norm_of(weights, module, teacher.shape[1]))
        connected = batch_norm(part(params, "1"), F.conv2d(student, params["0.weight"]))
        return losses.ofd(connected, teacher, margin)

    def init(generator: torch.Generator, student: Tensor, teacher: Tensor, weights: Mapping[str, Tensor]) -> Params:
        if student.ndim != 4:
            raise TransferError(f"ofd: wanted maps (n, c, h, w), got {tuple(student.shape)}")
        _norm_of(weights, module, teacher.shape[1])
        c, dtype = teacher.shape[1], torch.float64 if teacher.dtype == torch.float64 else torch.float32
        kernel = torch.empty(c, student.shape[1], 1, 1, dtype=dtype, device=generator.device)
        kernel.normal_(0, math.sqrt(2 / c), generator=generator)  # as the authors, by the number of outputs
        return {"0.weight": kernel, **under("1", norm_layer(kernel, c))}

    return term(loss, student, teacher, f"{path.net}:params", weight=weight, params=init)


def _norm_of(weights: Mapping[str, Tensor], module: str, channels: int) -> tuple[Tensor, Tensor]:
    found = weights.get(f"{module}.weight"), weights.get(f"{module}.bias")
    if found[0] is None or found[1] is None or found[0].shape != (channels,) or found[1].shape != (channels,):
        norms = [name.removesuffix(".bias") for name, x in weights.items() if name.endswith(".bias") and x.ndim == 1]
        raise TransferError(
            f"ofd: {module!r} is no batch norm of {channels} channels in the teacher{nearest(module, norms)}"
        )
    return found[0], found[1]
