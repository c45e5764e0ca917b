"""Masked generative distillation with its mask and its generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer import losses
from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer.adapters import conv
from ttransfer.core import Params, Term, term, uniform
from ttransfer.terms._parts import keys_of, part, under

__all__ = ["mgd", "mgd_channels"]


def mgd(student: Any, teacher: Any, *, hide: Any = 0.65, weight: Any = 2e-5) -> Term:
    r"""Hide positions of the student's map, and generate the teacher's map from the rest: `tt.losses.mgd`.

    .. math:: \frac1n \sum_i \| G(M_i \odot A s_i) - t_i \|_F^2

    A, a 1x1 convolution, is there if the teacher has another number of channels; G is a 3x3 convolution, a ReLU and a
    3x3 convolution. Both belong to the term. M is drawn anew for each row and step, by keys, the same in all channels.

    Args:
        student: the read of the student's maps, (n, c, h, w).
        teacher: the read of the teacher's maps, of the same height and width.
        hide: how many of the positions are hidden, from 0 to below 1: the paper's λ for detection.
        weight: of the term; the default is the paper's for detectors of one stage.

    Returns:
        A Term.

    Raises:
        TransferError: for a `hide` outside of [0, 1), or a student that is no read of rows.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.mgd("student(source).layer4", "teacher(source).layer4")
        >>> [str(r) for r in term.reads]
        ['student(source).layer4', 'teacher(source).layer4', 'source:keys']

    Checked against:
        modelopt's MGDLoss with the same mask and generator.

    Peers:
        MMRazor and the authors draw the mask from the global generator; modelopt takes a mean over entries.

    References:
        Zhendong Yang, Zhe Li, Mingqi Shao, Dachuan Shi, Zehuan Yuan, Chun Yuan.
        Masked Generative Distillation. 2022.
    """
    return _masked(mgd, student, teacher, hide, weight, lambda x: (1, *x.shape[2:]))


def mgd_channels(student: Any, teacher: Any, *, hide: Any = 0.15, weight: Any = 7e-5) -> Term:
    """Hide channels of the student's map in place of positions: `mgd` as the paper has it for classification.

    Args:
        student: the read of the student's maps, (n, c, h, w).
        teacher: the read of the teacher's maps, of the same height and width.
        hide: how many of the channels are hidden, from 0 to below 1.
        weight: of the term; the default is the paper's for classification.

    Returns:
        A Term.

    Raises:
        TransferError: for a `hide` outside of [0, 1), or a student that is no read of rows.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.mgd_channels("student(source).layer4", "teacher(source).layer4")
        >>> dict(term.hyper)
        {'weight': 7e-05, 'hide': 0.15}

    Checked against:
        modelopt's MGDLoss with the same mask and generator.

    Peers:
        The authors' code for classification.

    References:
        Zhendong Yang, Zhe Li, Mingqi Shao, Dachuan Shi, Zehuan Yuan, Chun Yuan.
        Masked Generative Distillation. 2022.
    """
    return _masked(mgd_channels, student, teacher, hide, weight, lambda x: (x.shape[1], 1, 1))


def _masked(about: Any, student: Any, teacher: Any, hide: Any, weight: Any, shape: Any) -> Term:
    called = about.__name__
    if isinstance(hide, (int, float)) and not 0 <= hide < 1:
        raise TransferError(f"{called}: wanted hide from 0 to below 1, got {hide!r}")

    @claims(coupled=False, about=about)
    def loss(
        student: Tensor, teacher: Tensor, keys: Tensor, *, params: Mapping[str, Tensor], hide: float | Tensor
    ) -> Tensor:
        c = teacher.shape[1]
        aligned = conv(c).apply(part(params, "align"), student) if "align.0.weight" in params else student
        seen = (uniform(keys, *shape(aligned)) >= hide).to(aligned.dtype)
        return losses.mgd(conv(c, c, kernel=3).apply(part(params, "generator"), seen * aligned), teacher)

    def init(generator: torch.Generator, student: Tensor, teacher: Tensor, keys: Tensor) -> Params:
        c = teacher.shape[1]
        align = {} if student.shape[1] == c else under("align", conv(c).init(generator, student))
        return {**align, **under("generator", conv(c, c, kernel=3).init(generator, teacher))}

    return term(loss, student, teacher, keys_of(called, student), weight=weight, params=init, hide=hide)
