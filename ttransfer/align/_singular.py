"""Singular values and vectors whose gradients are finite where values repeat or vanish."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._numeric import finite

__all__ = ["nuclear_norm", "singular"]


def nuclear_norm(x: Tensor, size: float = 0.0) -> Tensor:
    """The sum of the singular values; those that are 0 but for rounding have no slope.

    Args:
        x: a matrix.
        size: of what x is a difference, if rounding is to be measured by that.
    """
    x, rest = finite(x)
    values = torch.linalg.svdvals(x)
    return torch.where(_sizable(values, x, size), values, 0).sum() + rest


def singular(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular vectors and values: (n, d) -> (n, r), (r,), (d, r), without those of values that are 0.

    Vectors of a value that is 0 but for rounding are zeros: they are not determined. Derivatives are of first order
    only; by vectors of values that repeat, which turn freely among themselves, none passes.
    """
    u, values, v = torch.linalg.svd(finite(x.detach())[0], full_matrices=False)
    v = v.mT
    there = _sizable(values, x)
    u, v = torch.where(there, u, 0), torch.where(there, v, 0)
    values = torch.where(there, values, 0)
    inverse = torch.where(there, 1 / torch.where(there, values, 1), 0)
    squares = values.square()
    apart = squares - squares[:, None]
    differ = apart.abs() > 8 * torch.finfo(x.dtype).eps * torch.maximum(squares, squares[:, None])
    turn = torch.where(differ, 1 / torch.where(differ, apart, 1), 0)
    # 0 in value: what follows is the derivative, written out.
    step = x - x.detach()
    inside = u.mT @ step @ v
    du = u @ (turn * (inside * values + values[:, None] * inside.mT)) + (step @ v - u @ inside) * inverse
    dv = v @ (turn * (values[:, None] * inside + inside.mT * values)) + (step.mT @ u - v @ inside.mT) * inverse
    return u + du, values + inside.diagonal(), v + dv


def _sizable(values: Tensor, x: Tensor, size: float = 0.0) -> Tensor:
    values = values.detach()
    return values > max(x.shape) * torch.finfo(x.dtype).eps * values.amax().clamp_min(size)
