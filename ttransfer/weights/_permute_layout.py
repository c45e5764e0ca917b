"""Other orders of a weight's axes."""

from __future__ import annotations

from collections.abc import Sequence

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._named import named
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["permute_layout"]


def permute_layout(patterns: str | Sequence[str], order: str | Sequence[int]) -> WeightMap:
    """Put the axes of weights in another order: from TensorFlow's and Flax's layouts to PyTorch's, say.

    ======================  ==================
    Keras and Flax          PyTorch
    ======================  ==================
    Conv2D                  ``"HWIO->OIHW"``
    Conv3D                  ``"DHWIO->OIDHW"``
    DepthwiseConv2D         ``"HWOI->OIHW"``
    Dense                   ``"IO->OI"``
    ======================  ==================

    (DepthwiseConv2D with one filter for each channel.)

    Args:
        patterns: names, or regular expressions for whole names.
        order: one letter for each axis, before and after; or the source's axes in their new order, as for
            `torch.permute`.

    Returns:
        A `WeightMap`; tensors that no pattern matches are passed on. What it gives is contiguous.

    Raises:
        TransferError: for an order that is none; at use for a pattern that matches no source, and for a tensor
            with another number of axes.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"conv.kernel": torch.ones(3, 3, 1, 8), "conv.bias": torch.ones(8)}
        >>> load = tt.weights.permute_layout(r".*\\.kernel", "HWIO->OIHW")
        >>> {name: tuple(x.shape) for name, x in load.apply(src, {}).items()}
        {'conv.kernel': (8, 1, 3, 3), 'conv.bias': (8,)}
    """
    axes = _letters(order) if isinstance(order, str) else tuple(order)
    if sorted(axes) != list(range(len(axes))) or not axes:
        raise TransferError(f"permute_layout: {order!r} is no order of axes; write 'HWIO->OIHW' or (3, 2, 0, 1)")
    how = order.replace("->", " -> ") if isinstance(order, str) else f"axes {axes}"

    def routes(src: Tensors, like: Tensors) -> Routes:
        made = {name: taken(name) for name in src}
        for name in named("permute_layout", patterns, src):
            if src[name].ndim != len(axes):
                raise TransferError(
                    f"permute_layout: {name!r} {shown(src[name])} has {src[name].ndim} axes, and {order!r} is for "
                    f"{len(axes)}; name the tensors that it is for"
                )
            made[name] = Route((name,), lambda x: x.permute(axes).contiguous(), how)
        return Routes(made)

    return routed(routes)


def _letters(order: str) -> tuple[int, ...]:
    """Read "HWIO->OIHW"; what cannot be read is no order."""
    before, arrow, after = (part.strip() for part in order.partition("->"))
    if not arrow or len(set(before)) < len(before) or sorted(before) != sorted(after):
        return ()
    return tuple(before.index(letter) for letter in after)
