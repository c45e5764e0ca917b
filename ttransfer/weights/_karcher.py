"""The mean of checkpoints on a sphere: slerp for more than two."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._maps import WeightMap
from ttransfer.weights._merging import Numbers, merged, named, numbers, party
from ttransfer.weights._numbers import python_number, want_numbers
from ttransfer.weights._routes import Routes, Tensors, routed

__all__ = ["karcher"]


def karcher(weights: Numbers | None = None, *, iterations: int = 10) -> WeightMap:
    r"""Average checkpoints tensor by tensor on the sphere of directions, and their lengths by themselves.

    .. math:: u = \arg\min_{\lVert u \rVert = 1} \sum_i w_i\, \angle(u, \theta_i)^2, \qquad
        \theta = u \sum_i w_i \lVert \theta_i \rVert

    with weights divided by their sum. Each iteration takes the mean of the arcs from u to every direction and walks
    along it. For two checkpoints of equal length this is `tt.weights.slerp`. A tensor that is zero has no direction and
    counts by its length alone; where the directions cancel out, and for running means and variances, the plain average
    is taken.

    Args:
        weights: as for `tt.weights.average`, positive.
        iterations: how many; the error falls geometrically, the faster the nearer the checkpoints are.

    Returns:
        A `WeightMap` from a pool to one checkpoint; integer tensors are those of the first in the pool.

    Raises:
        TransferError: for fewer than one iteration; at use, as `tt.weights.average`.

    Example:
        >>> import torch, ttransfer as tt
        >>> a, b, c = ({"w": torch.tensor(x)} for x in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]))
        >>> tt.weights.karcher().apply(tt.weights.pool(a=a, b=b, c=c), {})["w"]
        tensor([0.5774, 0.5774, 0.5774])

    References:
        Hermann Karcher. Riemannian center of mass and mollifier smoothing. 1977.
    """
    if weights is not None:
        want_numbers("karcher", "weights", weights)
    python_number("karcher", "iterations", iterations, whole=True)
    if iterations < 1:
        raise TransferError(f"karcher: wanted at least 1 iteration, got {iterations}")

    def routes(src: Tensors, like: Tensors) -> Routes:
        who = party("karcher", src, names=named(weights))

        def shares(x: Tensor) -> Tensor:
            w = numbers("karcher", 1.0 if weights is None else weights, who.names, x).to(x.dtype)
            return w / w.sum()

        def plain(*tensors: Tensor) -> Tensor:
            return torch.tensordot(shares(tensors[0]), torch.stack(tensors), 1)

        def make(*tensors: Tensor) -> Tensor:
            return _mean(torch.stack(tensors), shares(tensors[0]), iterations)

        return merged(src, who, f"mean of {len(who.names)} on the sphere", make, statistics=plain)

    return routed(routes)


def _mean(x: Tensor, w: Tensor, iterations: int) -> Tensor:
    rows = x.reshape(len(x), -1)
    long = rows.square().sum(1)
    some = long > 0
    length = torch.where(some, torch.where(some, long, torch.ones_like(long)).sqrt(), torch.zeros_like(long))
    v = rows / torch.where(some, length, torch.ones_like(length))[:, None]
    w_of = torch.where(some, w, torch.zeros_like(w))
    start = w_of @ v
    least = torch.finfo(start.dtype).eps
    whole = start.square().sum() > least**1.5
    u = start * torch.where(whole, start.square().sum(), torch.ones_like(w[0])).rsqrt()
    share = w_of / torch.where(whole, w_of.sum(), torch.ones_like(w[0]))
    for _ in range(iterations):
        # Towards v: what of it is upright on u, as long as the angle between them.
        cosine = v @ u
        upright = v - cosine[:, None] * u
        sine2 = upright.square().sum(1)
        apart = sine2 > least**2
        sine = torch.where(apart, sine2, torch.ones_like(sine2)).sqrt()
        factor = torch.where(apart, torch.atan2(sine, cosine) / sine, torch.ones_like(sine))
        way = (share * factor) @ upright
        far2 = way.square().sum()
        moves = far2 > least**2
        far = torch.where(moves, far2, torch.ones_like(far2)).sqrt()
        u = torch.where(moves, far.cos() * u + far.sin() * way / far, u)
        u = u * torch.where(whole, u.square().sum(), torch.ones_like(far2)).rsqrt()
    on_sphere = u * (w @ length)
    return torch.where(whole, on_sphere, w @ rows).reshape(x.shape[1:])
