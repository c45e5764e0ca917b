"""Attention-based feature distillation with the layers that make queries and keys."""

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

__all__ = ["afd"]


def afd(student: Sequence[Any], teacher: Sequence[Any], *, dim: int = 128, weight: Any = 200.0) -> Term:
    r"""Distil all pairs of layers, as far as a learned attention finds them alike: `tt.losses.afd` with its layers.

    .. math::
        q_t = \mathrm{BN}(W^q_t \bar h^T_t), \qquad
        k_{st} = \mathrm{BN}(V_t \, \mathrm{relu}(\mathrm{BN}(W^k_s \bar h^S_s))), \qquad
        p_{ts} = \langle p^T_t, p^S_s \rangle

    The h are maps, pooled to (n, channels). All W, V and p belong to the term and train with the student, V and its
    batch norm common to the student's layers, as in the authors' code. Their statistics are those of the batch, so that
    the term sees the rows of all ranks of a sharded step.

    Args:
        student: reads of the student's maps, (n, c, h, w), of any sizes.
        teacher: reads of the teacher's maps, likewise; as many as one likes.
        dim: of queries and keys.
        weight: of the term; 200 is the authors' for ResNets on CIFAR-100.

    Returns:
        A Term.

    Raises:
        TransferError: for no layers on one side, or a `dim` below 1; when the step starts, for what is no map.

    Example:
        >>> import ttransfer as tt
        >>> layers = ["layer1", "layer2", "layer3"]
        >>> term = tt.terms.afd([f"student(source).{x}" for x in layers], [f"teacher(source).{x}" for x in layers])
        >>> term.coupled
        True

    Checked against:
        The authors' formula written out with layers of torch.nn.

    Peers:
        The authors' code. zhijian's AFD is another method: `tt.losses.afd_channels`.

    References:
        Mingi Ji, Byeongho Heo, Sungrae Park.
        Show, Attend and Distill: Knowledge Distillation via Attention-based Feature Matching. 2021.
    """
    if isinstance(student, str) or isinstance(teacher, str) or not student or not teacher or dim < 1:
        raise TransferError(
            f"afd: wanted lists of reads for both sides and dim of at least 1, got {student!r}, {teacher!r}, dim={dim}"
        )

    @claims(coupled=True, about=afd)
    def loss(student: list[Tensor], teacher: list[Tensor], *, params: Mapping[str, Tensor]) -> Tensor:
        queries = [_layer(part(params, f"query.{i}"), x.detach().mean((2, 3))) for i, x in enumerate(teacher)]
        keys = [_layer(part(params, f"key.{i}"), x.mean((2, 3))).relu() for i, x in enumerate(student)]
        # One normalisation over the rows of all layers, as the authors stack them.
        both = _layer(part(params, "bilinear"), torch.stack(keys, 1).flatten(0, 1))
        key = both.reshape(len(student[0]), len(student), len(teacher), dim)
        position = params["position.teacher"] @ params["position.student"].mT
        return losses.afd(student, teacher, torch.stack(queries, 1), key, position)

    def init(generator: torch.Generator, student: list[Tensor], teacher: list[Tensor]) -> Params:
        params: Params = {}
        for name, maps in (("query", teacher), ("key", student)):
            for i, like in enumerate(maps):
                want_map("afd", like)
                params.update(under(f"{name}.{i}", _start(generator, like, like.shape[1], dim)))
        params.update(under("bilinear", _start(generator, teacher[0], dim, dim * len(teacher))))
        for name, maps in (("teacher", teacher), ("student", student)):
            empty = params["bilinear.linear.weight"].new_empty(len(maps), dim)
            params[f"position.{name}"] = nn.init.xavier_normal_(empty, generator=generator)
        return params

    return term(loss, list(student), list(teacher), weight=weight, params=init)


def _start(generator: torch.Generator, like: Tensor, into: int, out: int) -> Params:
    layer = start_layer(generator, (out, into), like.dtype)
    return {**under("linear", layer), **under("norm", norm_layer(layer["weight"], out))}


def _layer(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    own = part(params, "linear")
    return batch_norm(part(params, "norm"), F.linear(x, own["weight"], own["bias"]))
