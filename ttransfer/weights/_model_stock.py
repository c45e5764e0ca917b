"""Model stock: how far to go towards the mean of a few tuned nets, by the angle between them."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer.core._maps import WeightMap
from ttransfer.weights._merging import merged, party
from ttransfer.weights._routes import Routes, Tensors, routed

__all__ = ["model_stock"]


def model_stock(*, base: str = "base") -> WeightMap:
    r"""Go from the base towards the mean of what was tuned from it, tensor by tensor, as far as they agree.

    .. math:: \theta = (1 - t)\, \theta_0 + t\, \bar\theta, \qquad t = \frac{k \cos \phi}{1 + (k - 1) \cos \phi}

    for k tuned checkpoints, where :math:`\phi` is the angle between two task vectors. The paper takes it to be one
    angle; for more than two the mean of the cosines of all pairs is taken. If they point apart the fraction t is
    negative, and near its pole, :math:`\cos \phi = -1 / (k - 1)`, of any size: the paper, which saw no such angles,
    does not bound it, and here it is held in 0 to 1.

    A task vector that is zero counts as orthogonal to the others. Running means and variances are averaged instead,
    and integer tensors are the base's, and so are all dtypes.

    Args:
        base: its name in the pool.

    Returns:
        A `WeightMap` from a pool to one checkpoint.

    Raises:
        TransferError: at use, for fewer than two checkpoints beside the base, or checkpoints that differ in names or
            shapes.

    Example:
        >>> import torch, ttransfer as tt
        >>> start, a, b = ({"w": torch.tensor(x)} for x in ([0.0, 0.0], [1.0, 1.0], [1.0, 0.0]))
        >>> tt.weights.model_stock().apply(tt.weights.pool(base=start, a=a, b=b), {})["w"]
        tensor([0.8284, 0.4142])

    References:
        Dong-Hwan Jang, Sangdoo Yun, Dongyoon Han. Model Stock: All we need is just a few fine-tuned models. 2024.
    """

    def routes(src: Tensors, like: Tensors) -> Routes:
        who = party("model_stock", src, base=base, least=2)
        return merged(src, who, f"{base} towards the mean of {len(who.names)}, by their angle", _stock)

    return routed(routes)


def _stock(start: Tensor, *tuned: Tensor) -> Tensor:
    k = len(tuned)
    change = (torch.stack(tuned) - start).reshape(k, -1)
    long = (change * change.conj()).real.sum(1) if change.is_complex() else change.square().sum(1)
    unit = change * torch.where(long > 0, long, torch.ones_like(long)).rsqrt()[:, None]
    both = (unit @ unit.mH).real if unit.is_complex() else unit @ unit.mT
    cosine = (both.sum() - both.diagonal().sum()) / (k * (k - 1))
    cosine = cosine.clamp(0, 1)
    t = k * cosine / (1 + (k - 1) * cosine)
    return start + t * change.mean(0).reshape(start.shape)
