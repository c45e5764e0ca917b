"""A first convolution for another number of input channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._named import named
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["adapt_input_conv"]


def adapt_input_conv(name: str | Sequence[str], channels: int | None = None, *, blocks: int = 1) -> WeightMap:
    r"""Adapt a first convolution to images of another number of channels, so that its answers keep their size.

    To one channel the filters are summed: a grey image is answered as the same image with its grey in every channel
    was. To n channels the c that there are are repeated, in order, and scaled.

    .. math::
        W'_{o,j} = \tfrac{c}{n} W_{o,\, j \bmod c} \;\; (n > 1), \qquad
        W'_{o,0} = \textstyle\sum_{i < c} W_{o,i} \;\; (n = 1)

    Args:
        name: of the convolution's weight (out, c, ...), or names and expressions for several.
        channels: n; None takes it from the target. In a grouped convolution c and n are the channels of one group.
        blocks: how many pixels a space-to-depth stem lays into the channel axis, one after another (16 for blocks of
            4 by 4); `channels` then are those of one pixel.

    Returns:
        A `WeightMap`; other tensors are passed on. It computes in at least float32.

    Raises:
        TransferError: for no channels; at use if the name is not there, or on the target's side if it is asked for
            the channels, and for a tensor that is no convolution's weight.

    Example:
        >>> import torch, ttransfer as tt
        >>> src, like = {"conv1.weight": torch.ones(8, 3, 7, 7)}, {"conv1.weight": torch.ones(8, 1, 7, 7)}
        >>> load = tt.weights.adapt_input_conv("conv1.weight")
        >>> print(tt.weights.show(load.plan(src, like)))
        conv1.weight  <- conv1.weight  input channels 3 -> 1, summed
        >>> load.apply(src, like)["conv1.weight"].mean().item()
        3.0

    Checked against: timm's adapt_input_conv, and a loop.
    Peers: timm computes in float32 whatever the dtype: in float64 it is off by 5e-7. With n > 1 it refuses
    space-to-depth stems.
    """
    if (channels is not None and channels < 1) or blocks < 1:
        raise TransferError(f"adapt_input_conv: wanted at least one channel and one block, got {channels} and {blocks}")

    def routes(src: Tensors, like: Tensors) -> Routes:
        made = {key: taken(key) for key in src}
        for key in named("adapt_input_conv", name, src):
            have = _channels(key, src, blocks, "source")
            if channels is None and key not in like:
                raise TransferError(
                    f"adapt_input_conv: the target has no {key!r}, and channels= is not given{nearest(key, like)}"
                )
            want = _channels(key, like, blocks, "target") if channels is None else channels
            if have != want:
                made[key] = Route((key,), lambda x, n=want: _adapted(x, n, blocks), _how(have, want))
        return Routes(made)

    return routed(routes)


def _channels(name: str, tensors: Tensors, blocks: int, where: str) -> int:
    x = tensors[name]
    if x.ndim < 3 or x.shape[1] % blocks or not x.shape[1]:
        wanted = f"(out, channels{f' x {blocks}' if blocks > 1 else ''}, ...)"
        raise TransferError(
            f"adapt_input_conv: wanted the {where}'s {name!r} as a convolution's weight {wanted}, got {shown(x)}"
        )
    return x.shape[1] // blocks


def _how(have: int, want: int) -> str:
    told = "summed" if want == 1 else f"repeated and scaled by {have}/{want}"
    return f"input channels {have} -> {want}, {told}"


def _adapted(weight: Tensor, channels: int, blocks: int) -> Tensor:
    x = weight.to(torch.promote_types(weight.dtype, torch.float32)).unflatten(1, (blocks, -1))
    have = x.shape[2]
    if channels == 1:
        x = x.sum(2, keepdim=True)
    else:
        x = torch.cat([x] * -(-channels // have), 2)[:, :, :channels] * (have / channels)
    return x.flatten(1, 2).to(weight.dtype)
