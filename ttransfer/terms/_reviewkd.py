"""Knowledge review: the student's layers are fused from deep to shallow, each for a layer of the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttransfer import losses
from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer.adapters._layer import start_layer, want_map
from ttransfer.core import Params, Term, term
from ttransfer.terms._parts import batch_norm, norm_layer, part, under

__all__ = ["reviewkd"]


def reviewkd(student: Sequence[Any], teacher: Sequence[Any], *, middle: int = 256, weight: Any = 5.0) -> Term:
    r"""Let shallow layers of the teacher be reviewed by deep layers of the student: fusion, then `tt.losses.hcl`.

    .. math::
        x_l = \mathrm{BN}(A_l s_l), \qquad
        r_l = z_{l1} x_l + z_{l2} \, r_{l+1}, \quad z_l = \sigma(B_l [x_l, r_{l+1}]), \qquad
        \sum_l \mathrm{hcl} \bigl( \mathrm{BN}(C_l r_l), t_l \bigr)

    A is a 1x1 convolution to `middle` channels, B one to two maps of attention, C a 3x3 convolution to the teacher's
    channels; the deepest layer has no attention, and r = x there. Maps are brought to another size by nearest
    neighbours. All belong to the term and train with the student. The statistics of the batch norms are those of the
    batch, so that the term sees the rows of all ranks of a sharded step.

    Args:
        student: reads of the student's maps, (n, c, h, w), from shallow to deep. Pooled features (n, d) become a map of
            1 x 1: the authors' last layer.
        teacher: reads of the teacher's maps, one for each of the student's.
        middle: channels of the fused maps; the authors take 256, and 512 for networks with wide last layers.
        weight: of the term: 5 for CIFAR-100 and 1 for ResNet 34 to 18 on ImageNet; the authors raise it from 0 over the
            first 20 epochs, as `tt.schedules.linear` does.

    Returns:
        A Term.

    Raises:
        TransferError: for lists of different lengths or empty ones, or a `middle` below 1; when the step starts, for
            what is no map.

    Example:
        >>> import ttransfer as tt
        >>> layers = ["layer1", "layer2", "fc:in"]
        >>> term = tt.terms.reviewkd([f"student(source).{x}" for x in layers], [f"teacher(source).{x}" for x in layers])
        >>> len(term.reads[0]), term.coupled
        (3, True)

    Checked against:
        The fusion written out with layers of torch.nn, and torchdistill's HierarchicalContextLoss.

    Peers:
        torchdistill and mdistiller have it, as a wrapper of the student.

    References:
        Pengguang Chen, Shu Liu, Hengshuang Zhao, Jiaya Jia. Distilling Knowledge via Knowledge Review. 2021.
    """
    if (
        isinstance(student, str)
        or isinstance(teacher, str)
        or not student
        or len(student) != len(teacher)
        or middle < 1
    ):
        raise TransferError(
            "reviewkd: wanted lists of as many reads for student and teacher, and middle of at least 1, "
            f"got {student!r}, {teacher!r}, middle={middle}"
        )

    @claims(coupled=True, about=reviewkd)
    def loss(student: list[Tensor], teacher: list[Tensor], *, params: Mapping[str, Tensor]) -> Tensor:
        fused: Tensor | None = None
        total = params["0.out.weight"].new_zeros(())
        for i in reversed(range(len(student))):
            own, s, t = part(params, str(i)), as_map(student[i]), as_map(teacher[i])
            x = batch_norm(part(own, "in_norm"), F.conv2d(s, own["in.weight"]))
            fused = x if fused is None else _fuse(own, x, F.interpolate(fused, x.shape[2:]))
            if fused.shape[2:] != t.shape[2:]:
                fused = F.interpolate(fused, t.shape[2:])
            out = batch_norm(part(own, "out_norm"), F.conv2d(fused, own["out.weight"], padding=1))
            total = total + losses.hcl(out, t)
        return total

    def init(generator: torch.Generator, student: list[Tensor], teacher: list[Tensor]) -> Params:
        params: Params = {}
        for i, (s, t) in enumerate(zip(map(as_map, student), map(as_map, teacher), strict=True)):
            want_map("reviewkd", s)
            want_map("reviewkd", t)
            params.update(under(str(i), _start(generator, s, t.shape[1], middle, fuse=i + 1 < len(student))))
        return params

    return term(loss, list(student), list(teacher), weight=weight, params=init)


def as_map(x: Tensor) -> Tensor:
    """Pooled features as a map of 1 x 1."""
    return x[:, :, None, None] if x.ndim == 2 else x


def _fuse(own: Mapping[str, Tensor], x: Tensor, deeper: Tensor) -> Tensor:
    attention = F.conv2d(torch.cat([x, deeper], 1), own["attention.weight"], own["attention.bias"]).sigmoid()
    return x * attention[:, :1] + deeper * attention[:, 1:]


def _start(generator: torch.Generator, like: Tensor, out: int, middle: int, *, fuse: bool) -> Params:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32

    def kernel(into: int, channels: int, width: int) -> Tensor:
        empty = torch.empty(channels, into, width, width, dtype=dtype, device=generator.device)
        return nn.init.kaiming_uniform_(empty, a=1, generator=generator)  # as the authors

    first = kernel(like.shape[1], middle, 1)
    attention = start_layer(generator, (2, 2 * middle, 1, 1), dtype) if fuse else {}
    return {
        "in.weight": first,
        **under("in_norm", norm_layer(first, middle)),
        **under("attention", attention),
        "out.weight": kernel(middle, out, 3),
        **under("out_norm", norm_layer(first, out)),
    }
