"""The same numbers in another shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._named import named
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["reshape"]


def reshape(patterns: str | Sequence[str], shape: Sequence[int] | None = None) -> WeightMap:
    """Give weights another shape, with their numbers in the order in which they are.

    A linear layer's (out, in) is a 1x1 convolution's (out, in, 1, 1); a layer scale is (n,) in one library and
    (n, 1, 1) in another; the first linear layer after a flattened map of 512 channels of 7x7, (4096, 25088), is a
    convolution's (4096, 512, 7, 7).

    Args:
        patterns: names, or regular expressions for whole names.
        shape: the new shape, where one axis may be -1: what is left. None takes the shape of the target of that name,
            and then nothing but axes of length 1 may come or go: whether an axis was split or merged as the target
            means it, no shape can tell. Tensors that the target has not are passed on then.

    Returns:
        A `WeightMap`; tensors that no pattern matches are passed on.

    Raises:
        TransferError: for a shape that is none; at use for a pattern that matches no source, for one that matches no
            target if that is asked for the shape, and for a tensor with another number of entries, or, without
            `shape`, with other axes.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"gamma": torch.ones(8, 1, 1), "fc.weight": torch.ones(5, 8)}
        >>> like = {"gamma": torch.ones(8), "fc.weight": torch.ones(5, 8, 1, 1)}
        >>> print(tt.weights.show(tt.weights.reshape(".*").plan(src, like)))
        gamma      <- gamma      (8, 1, 1) -> (8,)
        fc.weight  <- fc.weight  (5, 8) -> (5, 8, 1, 1)
        >>> src = {"classifier.0.weight": torch.ones(16, 8 * 7 * 7)}
        >>> tt.weights.reshape("classifier.0.weight", (-1, 8, 7, 7)).apply(src, {})["classifier.0.weight"].shape
        torch.Size([16, 8, 7, 7])
    """
    wanted = None if shape is None else tuple(shape)
    if wanted is not None and (min(wanted, default=0) < -1 or wanted.count(-1) > 1):
        raise TransferError(f"reshape: {wanted} is no shape; at most one axis may be -1")

    def routes(src: Tensors, like: Tensors) -> Routes:
        made = {name: taken(name) for name in src}
        found = named("reshape", patterns, src)
        there = found if wanted is not None else [name for name in found if name in like]
        if not there:
            raise TransferError(
                f"reshape: the target has no {found[0]!r}, and shape= is not given; rename it first"
                f"{nearest(found[0], like)}"
            )
        for name in there:
            have = tuple(src[name].shape)
            want = _alike(name, src, like) if wanted is None else _filled(name, src, wanted)
            if have != want:
                made[name] = Route((name,), lambda x, to=want: x.reshape(to), f"{have} -> {want}")
        return Routes(made)

    return routed(routes)


def _filled(name: str, src: Tensors, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with its -1 filled in."""
    entries, known = src[name].numel(), math.prod(n for n in shape if n != -1)
    if -1 not in shape and known == entries:
        return shape
    if -1 not in shape or not known or entries % known:
        times = "" if -1 not in shape else "a multiple of "
        raise TransferError(
            f"reshape: {name!r} {shown(src[name])} has {entries} entries, and {shape} is for {times}{known}"
        )
    return tuple(entries // known if n == -1 else n for n in shape)


def _alike(name: str, src: Tensors, like: Tensors) -> tuple[int, ...]:
    """The target's shape, which has the same axes but for those of length 1."""
    have, want = tuple(src[name].shape), tuple(like[name].shape)
    if [n for n in have if n != 1] == [n for n in want if n != 1]:
        return want
    if math.prod(have) == math.prod(want):
        raise TransferError(
            f"reshape: {name!r} {have} for a target of {want} does more than add or remove axes of length 1; if the "
            f"numbers are in that order, say so with shape={want}, and if not use tt.weights.permute_layout first"
        )
    raise TransferError(
        f"reshape: {name!r} {have} has {math.prod(have)} entries, and its target {want} has {math.prod(want)}"
    )
