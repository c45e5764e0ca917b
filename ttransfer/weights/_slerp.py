"""Interpolation on a sphere, and the mean there."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer.core._maps import WeightMap
from ttransfer.weights._merging import Number, merged, party, single
from ttransfer.weights._numbers import want_number
from ttransfer.weights._routes import Routes, Tensors, routed

__all__ = ["slerp"]


def slerp(t: Number = 0.5, *, base: str = "base", tuned: str = "tuned") -> WeightMap:
    r"""Interpolate two checkpoints tensor by tensor along the arc between them, which keeps their length.

    .. math:: \theta = \frac{\sin((1 - t)\,\omega)}{\sin \omega}\, \theta_a + \frac{\sin(t\,\omega)}{\sin \omega}\,
        \theta_b, \qquad \omega = \angle(\theta_a, \theta_b)

    Each tensor is one vector. Where two are parallel or opposite, or one is zero, there is no arc, and they are
    interpolated along the line; so are running means and variances, for a variance must not turn negative.

    Args:
        t: 0 is the first, 1 the second; a number or a tensor, through which gradients go.
        base: the first's name in the pool.
        tuned: the second's name in the pool.

    Returns:
        A `WeightMap` from a pool to one checkpoint; integer tensors are the first's.

    Raises:
        TransferError: at use, for a checkpoint that is not there, or checkpoints that differ in names or shapes.

    Example:
        >>> import torch, ttransfer as tt
        >>> both = tt.weights.pool(base={"w": torch.tensor([1.0, 0.0])}, tuned={"w": torch.tensor([0.0, 1.0])})
        >>> tt.weights.slerp(0.5).apply(both, {})["w"]
        tensor([0.7071, 0.7071])

    References:
        Ken Shoemake. Animating Rotation with Quaternion Curves. 1985.
    """
    want_number("slerp", "t", t)

    def routes(src: Tensors, like: Tensors) -> Routes:
        who = party("slerp", src, names=(tuned,), base=base)
        return merged(
            src,
            who,
            "interpolated along the arc",
            lambda a, b: _arc(a, b, single(t, a)),
            statistics=lambda a, b: _line(a, b, single(t, a)),
        )

    return routed(routes)


def _line(a: Tensor, b: Tensor, t: Number) -> Tensor:
    return (1 - t) * a + t * b


def _arc(a: Tensor, b: Tensor, t: Number) -> Tensor:
    long = _square(a), _square(b)
    some = (long[0] > 0) & (long[1] > 0)
    u, v = (x * torch.where(some, size, torch.ones_like(size)).rsqrt() for x, size in zip((a, b), long, strict=True))
    # Kahan's angle: exact for small ones too, where the arc cosine of the product has lost half of the digits.
    apart, near = _square(u - v), _square(u + v)
    least = torch.finfo(apart.dtype).eps
    curved = some & (apart > least) & (near > least)
    one = torch.ones_like(apart)
    angle = 2 * torch.atan2(torch.where(curved, apart, one).sqrt(), torch.where(curved, near, one).sqrt())
    arc = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()
    return torch.where(curved, arc, _line(a, b, t))


def _square(x: Tensor) -> Tensor:
    return (x * x.conj()).real.sum() if x.is_complex() else x.square().sum()
