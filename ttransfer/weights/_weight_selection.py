"""A small network that starts as evenly spaced parts of a large one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._maps import WeightMap
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken
from ttransfer.weights._strict import Allow, allowed

__all__ = ["weight_selection"]


def weight_selection(*, skip: Allow = ()) -> WeightMap:
    r"""Take evenly spaced entries of each axis of a larger model of the same family, and its first layers.

    Of an axis of n entries, k are wanted:

    .. math:: i_j = \begin{cases} j\, n/k & \text{if } k \text{ divides } n\\
        \operatorname{round}\bigl(j\,(n-1)/(k-1)\bigr) & \text{else} \end{cases} \qquad j = 0 \dots k-1

    Each target takes from the source of its name, so the first layers of each stage are taken where layers are
    numbered in their names; rename them to take others. Rounding is as in the authors' code: halves to even, of
    `torch.linspace` in float32. Integers of another shape, such as the table of a window's relative positions, number
    places that a smaller net does not have: there the target keeps its own.

    Args:
        skip: regular expressions for whole names of targets that stay as they are: the head, of other classes.

    Returns:
        A `WeightMap` whose plan says of layers that the target does not have that they are beyond it.

    Raises:
        TransferError: at use, for a source that is smaller in some axis, or of another number of axes; for a pattern
            that matches no name.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"blocks.0.fc.weight": torch.arange(6.0), "blocks.1.fc.weight": torch.arange(6.0)}
        >>> small = tt.weights.weight_selection()
        >>> small.apply(src, {"blocks.0.fc.weight": torch.zeros(3)})["blocks.0.fc.weight"].tolist()
        [0.0, 2.0, 4.0]
        >>> small.apply(src, {"blocks.0.fc.weight": torch.zeros(4)})["blocks.0.fc.weight"].tolist()
        [0.0, 2.0, 3.0, 5.0]

    References:
        Xu, Zhiqiu, Chen, Yanjie, Vishniakov, Kirill, Yin, Yida, Shen, Zhiqiang, Darrell, Trevor, Liu, Lingjie, Liu,
        Zhuang. Initializing Models with Larger Ones. 2024.
    """

    def routes(src: Tensors, like: Tensors) -> Routes:
        let = allowed("weight_selection", skip, src, like)
        made: dict[str, Route] = {}
        own = [name for name, x in like.items() if name in src and not let(name) and _numbers(src[name], x)]
        for name, target in like.items():
            if name in src and name not in own and not let(name):
                made[name] = _selected(name, src[name], target)
        kept = tuple(name for name in like if let(name) or name in own)
        why = {name: "skipped" if let(name) else "the target has no such layer" for name in src if name not in made}
        return Routes(made, kept, unused=why | dict.fromkeys(own, "integers of another shape: the target has its own"))

    return routed(routes)


def _numbers(x: Tensor, target: Tensor) -> bool:
    """Whether it holds no weights but what follows from the shape, which is another."""
    return x.shape != target.shape and not (x.is_floating_point() or x.is_complex())


def _selected(name: str, x: Tensor, target: Tensor) -> Route:
    if x.shape == target.shape:
        return taken(name)
    if x.ndim != target.ndim or any(n < k for n, k in zip(x.shape, target.shape, strict=True)):
        raise TransferError(
            f"weight_selection: {name!r} is {tuple(x.shape)} in the source, too small for a target of "
            f"{tuple(target.shape)}"
        )
    steps = [(axis, n, k) for axis, (n, k) in enumerate(zip(x.shape, target.shape, strict=True)) if n != k]
    how = "; ".join(f"axis {axis}: {n} -> {k}, evenly" for axis, n, k in steps)
    return Route((name,), _evenly(steps), how)


def _evenly(steps: list[tuple[int, int, int]]) -> Callable[[Tensor], Tensor]:
    def make(x: Tensor) -> Tensor:
        for axis, n, k in steps:
            x = x.index_select(axis, even_indices(n, k).to(x.device))
        return x

    return make


def even_indices(n: int, k: int) -> Tensor:
    """k of n places, evenly spaced."""
    here = torch.device("cpu")
    if n % k == 0:
        return torch.arange(k, device=here) * (n // k)
    return torch.linspace(0, n - 1, k, device=here, dtype=torch.float32).round().long()
