"""Convolutions over images made into convolutions over clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._named import named
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["inflate", "inflate_centre"]


def inflate(patterns: str | Sequence[str], frames: int | None = None) -> WeightMap:
    r"""Inflate 2-D convolutions to 3-D, every frame of the kernel with the same share: a still is an image.

    .. math:: W'_{oithw} = W_{oihw} / T

    Args:
        patterns: names of weights (out, in, h, w), or regular expressions for whole names.
        frames: T; None takes it from the target's (out, in, T, h, w), each weight its own.

    Returns:
        A `WeightMap`; tensors that no pattern matches are passed on, and so are those of batch norms, which have
        one form for images and clips.

    Raises:
        TransferError: for no frames; at use for a pattern that matches no source, a tensor with another number of
            axes, and a target that is not there or has no frames if it is asked for them.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"conv.weight": torch.ones(8, 3, 7, 7)}
        >>> tt.weights.inflate("conv.weight", 5).apply(src, {})["conv.weight"][0, 0, :, 0, 0]
        tensor([0.2000, 0.2000, 0.2000, 0.2000, 0.2000])

    References:
        João Carreira, Andrew Zisserman. Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset. 2017.
    """
    return _inflating("inflate", patterns, frames, "each a share", _shared)


def inflate_centre(patterns: str | Sequence[str], frames: int | None = None) -> WeightMap:
    r"""Inflate 2-D convolutions to 3-D, all in the kernel's middle frame: each frame is an image of its own.

    .. math:: W'_{oithw} = W_{oihw} \, [t = \lfloor T/2 \rfloor] \qquad (t = 0, \dots, T - 1)

    Args:
        patterns: as for `inflate`.
        frames: as for `inflate`.

    Returns:
        A `WeightMap` as `inflate` gives it.

    Raises:
        TransferError: as for `inflate`.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"conv.weight": torch.ones(8, 3, 7, 7)}
        >>> tt.weights.inflate_centre("conv.weight", 5).apply(src, {})["conv.weight"][0, 0, :, 0, 0]
        tensor([0., 0., 1., 0., 0.])

    References:
        Rohit Girdhar, Georgia Gkioxari, Lorenzo Torresani, Manohar Paluri, Du Tran. Detect-and-Track: Efficient Pose
        Estimation in Videos. 2018.
    """
    return _inflating("inflate_centre", patterns, frames, "the middle one", _central)


def _inflating(
    whose: str, patterns: str | Sequence[str], frames: int | None, told: str, make: Callable[[Tensor, int], Tensor]
) -> WeightMap:
    if frames is not None and frames < 1:
        raise TransferError(f"{whose}: wanted at least one frame, got {frames}")

    def routes(src: Tensors, like: Tensors) -> Routes:
        made = {name: taken(name) for name in src}
        for name in named(whose, patterns, src):
            if src[name].ndim != 4:
                raise TransferError(f"{whose}: wanted {name!r} as (out, in, h, w), got {shown(src[name])}")
            t = _frames(whose, name, like) if frames is None else frames
            made[name] = Route((name,), lambda x, t=t: make(x, t), f"{t} frames, {told}" if t > 1 else "one frame")
        return Routes(made)

    return routed(routes)


def _frames(whose: str, name: str, like: Tensors) -> int:
    if name not in like:
        raise TransferError(f"{whose}: the target has no {name!r}, and frames= is not given{nearest(name, like)}")
    if like[name].ndim != 5 or not like[name].shape[2]:
        raise TransferError(f"{whose}: wanted the target's {name!r} as (out, in, T, h, w), got {shown(like[name])}")
    return like[name].shape[2]


def _shared(x: Tensor, frames: int) -> Tensor:
    return torch.stack([x / frames] * frames, 2)


def _central(x: Tensor, frames: int) -> Tensor:
    zeros = torch.zeros_like(x)
    return torch.stack([x if t == frames // 2 else zeros for t in range(frames)], 2)
